"""Choose the parents of genes that regulate none on the workers of a ray cluster."""

import joblib
import ray
from ray.util.joblib import register_ray

import scgim


def main() -> None:
    adata = scgim.data.simulate_screen(n_genes=30, n_drugs=12, seed=0)
    scgim.pp.mark_regulators(adata, adata.var_names[adata.varp["true_adjacency"].toarray().any(1)])
    scgim.model.GIM.setup_anndata(adata, size_factor_key="size_factor", regulator_key="regulator")
    model = scgim.model.GIM(adata)
    ray.init(num_cpus=2, include_dashboard=False)  # or ray.init("address of a cluster")
    register_ray()
    with joblib.parallel_config("ray", n_jobs=2):
        model.train()
    print(model.get_graph().head())


if __name__ == "__main__":  # workers are started from this file
    main()
