"""FedAvg on images that are disguised by a secret matrix."""
