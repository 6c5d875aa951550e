"""The CNN-LSTM, its weights, its explanations."""
