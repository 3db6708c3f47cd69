"""The campaign: one module a promise, tried as often as time allows; the tests beside it run its short form."""
