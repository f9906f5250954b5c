//! The query language: lexer, parser, printer, checks and evaluation over a source trait. No IO.
