"""Choose the parents of genes that regulate none on the workers of a dask cluster."""

import joblib
from distributed import Client

import scgim


def main() -> None:
    adata = scgim.data.simulate_screen(n_genes=30, n_drugs=12, seed=0)
    scgim.pp.mark_regulators(adata, adata.var_names[adata.varp["true_adjacency"].toarray().any(1)])
    scgim.model.GIM.setup_anndata(adata, size_factor_key="size_factor", regulator_key="regulator")
    model = scgim.model.GIM(adata)
    with (
        Client(n_workers=2, threads_per_worker=1, dashboard_address=None),
        joblib.parallel_config("dask"),
    ):  # or Client("address of a scheduler")
        model.train()
    print(model.get_graph().head())


if __name__ == "__main__":  # workers are started from this file
    main()
