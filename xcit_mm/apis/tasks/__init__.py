"""One task for each library: predict, describe the results, and draw them."""
