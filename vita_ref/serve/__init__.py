"""A local page, and a server that speaks OpenAI's protocol: ``python -m vita_ref.serve``. Nothing else imports it."""
