"""The published payload: flat files that travel to the Hub with the weights and import nothing but their siblings."""
