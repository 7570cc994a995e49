"""Where pictures come from: each source reads its files once and gives `Images`."""
