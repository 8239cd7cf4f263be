"""Messages and stubs generated from `protos/annheal/v1` by `make proto`; never edited."""
