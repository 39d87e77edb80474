"""What each library's models are asked, and how their answers are put into words and pictures."""
