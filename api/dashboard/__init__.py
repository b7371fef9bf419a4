"""The dashboard's page: HTML, a style sheet, JavaScript modules and the libraries below ``vendor/``.

Browsers read them as they are: nothing is built (docs/decisions/0044-dashboard.md). The page asks the API and
knows nothing else of rankwise.
"""
