//! `label_replace` and `label_join`.

use std::collections::HashMap;

use saturn_model::{Labels, METRIC_NAME, compile_anchored_regex};

use crate::ast::Expr;
use crate::error::EvalError;
use crate::eval::block::Block;
use crate::eval::engine::Evaluator;
use crate::eval::grid::Grid;
use crate::eval::names::{Duplicates, merge_duplicates};

impl Evaluator<'_> {
    /// `label_replace(v, destination, replacement, source, regex)`. Series that do not match stay.
    pub(super) fn label_replace(&self, args: &[Expr], grid: &Grid) -> Result<Block, EvalError> {
        let destination = self.label_argument(&args[1], "destination", "label_replace", grid)?;
        let replacement = self.utf8_argument(&args[2], "replacement", "label_replace", grid)?;
        let source = self.utf8_argument(&args[3], "source label name", "label_replace", grid)?;
        let pattern = self.utf8_argument(&args[4], "regular expression", "label_replace", grid)?;
        let regex = compile_anchored_regex(&pattern).map_err(|e| {
            EvalError::Execution(format!("invalid regular expression in label_replace(): {}", e.pattern))
        })?;
        let mut block = self.vector(&args[0], grid)?;
        // Many series have the same value: each is expanded once.
        let mut expanded: HashMap<String, Option<String>> = HashMap::new();
        for name in &mut block.names {
            self.check_cancelled()?;
            let value = name.labels.get(&source).unwrap_or("");
            if !expanded.contains_key(value) {
                let result = regex.captures(value).map(|captures| {
                    let mut result = String::new();
                    captures.expand(&replacement, &mut result);
                    result
                });
                expanded.insert(value.to_owned(), result);
            }
            if let Some(Some(result)) = expanded.get(value) {
                name.labels = with_label(&name.labels, &destination, result);
                name.drop_name &= destination != METRIC_NAME;
            }
        }
        merge_duplicates(block, Duplicates::MergeDisjoint)
    }

    /// `label_join(v, destination, separator, sources...)`
    pub(super) fn label_join(&self, args: &[Expr], grid: &Grid) -> Result<Block, EvalError> {
        let destination = self.label_argument(&args[1], "destination", "label_join", grid)?;
        let separator = self.utf8_argument(&args[2], "separator", "label_join", grid)?;
        let sources: Vec<String> = args[3..]
            .iter()
            .map(|arg| self.label_argument(arg, "source", "label_join", grid))
            .collect::<Result<_, _>>()?;
        let mut block = self.vector(&args[0], grid)?;
        for name in &mut block.names {
            self.check_cancelled()?;
            let values: Vec<&str> =
                sources.iter().map(|source| name.labels.get(source).unwrap_or("")).collect();
            name.labels = with_label(&name.labels, &destination, &values.join(&separator));
            name.drop_name &= destination != METRIC_NAME;
        }
        merge_duplicates(block, Duplicates::MergeDisjoint)
    }

    fn utf8_argument(
        &self,
        arg: &Expr,
        what: &str,
        function: &str,
        grid: &Grid,
    ) -> Result<String, EvalError> {
        String::from_utf8(self.text(arg, grid)?).map_err(|error| {
            let text = String::from_utf8_lossy(error.as_bytes()).into_owned();
            EvalError::Execution(format!("invalid {what} in {function}(): {text}"))
        })
    }

    fn label_argument(
        &self,
        arg: &Expr,
        side: &str,
        function: &str,
        grid: &Grid,
    ) -> Result<String, EvalError> {
        let what = format!("{side} label name");
        let name = self.utf8_argument(arg, &what, function, grid)?;
        if name.is_empty() {
            return Err(EvalError::Execution(format!("invalid {what} in {function}(): {name}")));
        }
        Ok(name)
    }
}

fn with_label(labels: &Labels, name: &str, value: &str) -> Labels {
    labels.to_builder().set(name, value).build()
}
