"""From somebody's files to a data set: labels joined, images fetched, shards written, everything accounted for."""
