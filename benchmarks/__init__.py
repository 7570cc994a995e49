"""How fast Litvision is, beside what people would write instead: `make bench`."""
