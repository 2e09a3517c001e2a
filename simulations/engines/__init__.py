"""Three ways to run the same ServerApp and ClientApp: in process, on Ray, by Flower."""
