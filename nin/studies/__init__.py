"""Studies of trained nets and of their training."""
