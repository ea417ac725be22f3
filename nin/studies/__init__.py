"""What is asked of trained nets and of their training."""
