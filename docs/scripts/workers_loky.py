"""Choose the parents of genes that regulate none on all cores of this machine."""

import joblib

import scgim


def main() -> None:
    adata = scgim.data.simulate_screen(n_genes=30, n_drugs=12, seed=0)
    scgim.pp.mark_regulators(adata, adata.var_names[adata.varp["true_adjacency"].toarray().any(1)])
    scgim.model.GIM.setup_anndata(adata, size_factor_key="size_factor", regulator_key="regulator")
    model = scgim.model.GIM(adata)
    with joblib.parallel_config("loky", n_jobs=2):
        model.train()
    print(model.get_graph().head())


if __name__ == "__main__":  # workers are started from this file
    main()
