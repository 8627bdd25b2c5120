"""The checker of shapes and dtypes that every test runs under; an int will do for a float (PEP 484)."""

from beartype import BeartypeConf, beartype

checked = beartype(conf=BeartypeConf(is_pep484_tower=True))
