"""How things are computed: one contract, several implementations. Arrays in, arrays out; nothing here imports tinyres."""
