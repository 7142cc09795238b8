"""A prepared data set read: shards, index, the order of samples, batches; and the embedded data set `digits`."""
