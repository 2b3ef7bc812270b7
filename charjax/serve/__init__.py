"""An HTTP server of trained models, in the completions protocol of OpenAI's client."""
