"""What measures charjax: its speed against its peers, its quality, its promises."""
