//! From a query's text to its checked syntax tree, and back.
//!
//! `lexer` makes words, `parser` (with `selector` and `durations`) makes the tree, `check` refuses trees
//! whose types do not fit, `printer` writes them. Nothing in here looks at data.

pub mod ast;
mod check;
pub(crate) mod durations;
mod lexer;
mod parser;
mod printer;
mod selector;
mod token;

#[cfg(test)]
mod tests;

pub use parser::{parse, parse_selector, parse_with_limits};
