//! Refuses trees whose types, numbers of arguments or modifiers do not fit, in Prometheus's words.
//!
//! Source: `checkAST` of Prometheus's `promql/parser/parse.go`. Like there, operands are checked before
//! the node that they belong to.

use saturn_model::METRIC_NAME;

use crate::error::{ParseError, ParseErrorKind};
use crate::functions::{FunctionId, Variadic};
use crate::span::Span;
use crate::syntax::ast::{
    Aggregate, Binary, Call, Cardinality, Expr, ExprKind, MatrixSelector, ValueType, VectorSelector,
};

/// Checks a whole expression.
pub(super) fn check(expr: &Expr, query: &str) -> Result<(), ParseError> {
    let checker = Checker { query };
    checker.value_type(expr).map(|_| ())
}

/// Checks the matchers of one selector.
pub(super) fn check_selector(selector: &VectorSelector, span: Span, query: &str) -> Result<(), ParseError> {
    Checker { query }.selector(selector, span)
}

struct Checker<'a> {
    query: &'a str,
}

type Checked<T> = Result<T, ParseError>;

impl Checker<'_> {
    fn fail<T>(&self, span: Span, message: impl Into<String>) -> Checked<T> {
        let at = span.line_column(self.query);
        Err(ParseError { kind: ParseErrorKind::Check, span, at, message: message.into() })
    }

    /// Checks `expr` and says its type.
    fn value_type(&self, expr: &Expr) -> Checked<ValueType> {
        match &expr.kind {
            ExprKind::Number(_) => Ok(ValueType::Scalar),
            ExprKind::Text(_) => Ok(ValueType::Text),
            ExprKind::VectorSelector(selector) => {
                self.selector(selector, expr.span)?;
                Ok(ValueType::Vector)
            }
            ExprKind::MatrixSelector(MatrixSelector { selector, .. }) => {
                self.selector(selector, expr.span)?;
                Ok(ValueType::Matrix)
            }
            ExprKind::Subquery(subquery) => match self.value_type(&subquery.expr)? {
                ValueType::Vector => Ok(ValueType::Matrix),
                other => {
                    let name = other.api_name();
                    let message = format!("subquery is only allowed on instant vector, got {name} instead");
                    self.fail(expr.span, message)
                }
            },
            ExprKind::Call(call) => self.call(call, expr.span),
            ExprKind::Aggregate(aggregate) => self.aggregate(aggregate),
            ExprKind::Binary(binary) => self.binary(binary, expr.span),
            ExprKind::Unary(_, inner) => match self.value_type(inner)? {
                scalar_or_vector @ (ValueType::Scalar | ValueType::Vector) => Ok(scalar_or_vector),
                other => {
                    let message = format!(
                        "unary expression only allowed on expressions of type scalar or instant vector, got \"{}\"",
                        other.documented_name()
                    );
                    self.fail(expr.span, message)
                }
            },
            ExprKind::Paren(inner) => self.value_type(inner),
        }
    }

    fn expect(&self, expr: &Expr, wanted: ValueType, context: &str) -> Checked<()> {
        let got = self.value_type(expr)?;
        if got == wanted {
            return Ok(());
        }
        let (wanted, got) = (wanted.documented_name(), got.documented_name());
        self.fail(expr.span, format!("expected type {wanted} in {context}, got {got}"))
    }

    fn selector(&self, selector: &VectorSelector, span: Span) -> Checked<()> {
        let Some((_, others)) = selector.matchers.split_last().filter(|_| !selector.name.is_empty()) else {
            if selector.matchers.iter().any(|matcher| !matcher.matches_empty()) {
                return Ok(());
            }
            return self.fail(span, "vector selector must contain at least one non-empty matcher");
        };
        match others.iter().find(|matcher| matcher.name() == METRIC_NAME) {
            None => Ok(()),
            Some(matcher) => {
                let (name, again) = (&selector.name, matcher.value());
                self.fail(span, format!("metric name must not be set twice: \"{name}\" or \"{again}\""))
            }
        }
    }

    fn aggregate(&self, aggregate: &Aggregate) -> Checked<ValueType> {
        self.expect(&aggregate.expr, ValueType::Vector, "aggregation expression")?;
        if let (Some(wanted), Some(param)) = (aggregate.op.param_type(), &aggregate.param) {
            self.expect(param, wanted, "aggregation parameter")?;
        }
        Ok(ValueType::Vector)
    }

    fn call(&self, call: &Call, span: Span) -> Checked<ValueType> {
        let function = call.function;
        let (got, wanted, name) = (call.args.len(), function.args.len(), function.name);
        let fewest = if function.variadic == Variadic::No { wanted } else { wanted - 1 };
        let most = match function.variadic {
            Variadic::No => wanted,
            Variadic::UpTo(more) => fewest + more,
            Variadic::Any => usize::MAX,
        };
        let (bound, number) = match function.variadic {
            Variadic::No => ("", wanted),
            _ if got < fewest => ("at least ", fewest),
            _ => ("at most ", most),
        };
        if got < fewest || got > most {
            return self.fail(
                span,
                format!("expected {bound}{number} argument(s) in call to \"{name}\", got {got}"),
            );
        }
        let context = format!("call to function \"{name}\"");
        for (i, arg) in call.args.iter().enumerate() {
            if function.id == FunctionId::Info && i == 1 {
                self.info_selector(arg, span)?;
            } else {
                self.expect(arg, function.args[i.min(wanted - 1)], &context)?;
            }
        }
        Ok(function.returns)
    }

    /// The second argument of `info` selects labels, not series.
    fn info_selector(&self, arg: &Expr, call: Span) -> Checked<()> {
        let got = self.value_type_unless_empty_selector(arg)?;
        if got != ValueType::Vector {
            let message = format!(
                "expected type instant vector in call to function \"info\", got {}",
                got.documented_name()
            );
            return self.fail(call, message);
        }
        match &arg.kind {
            ExprKind::VectorSelector(selector) if selector.name.is_empty() => Ok(()),
            ExprKind::VectorSelector(_) => {
                self.fail(arg.span, "expected label selectors only, got vector selector instead")
            }
            _ => self.fail(arg.span, "expected label selectors only"),
        }
    }

    fn value_type_unless_empty_selector(&self, arg: &Expr) -> Checked<ValueType> {
        match &arg.kind {
            ExprKind::VectorSelector(selector) if selector.name.is_empty() => Ok(ValueType::Vector),
            _ => self.value_type(arg),
        }
    }

    fn binary(&self, binary: &Binary, span: Span) -> Checked<ValueType> {
        let left = self.value_type(&binary.left)?;
        let right = self.value_type(&binary.right)?;
        let (op, matching) = (binary.op, &binary.matching);
        let operator = || self.operator_span(binary);
        if binary.return_bool && !op.is_comparison() {
            return self.fail(operator(), "bool modifier can only be used on comparison operators");
        }
        let scalars = left == ValueType::Scalar && right == ValueType::Scalar;
        if op.is_comparison() && !binary.return_bool && scalars {
            return self.fail(operator(), "comparisons between scalars must use BOOL modifier");
        }
        if let Some(label) =
            matching.labels.iter().find(|label| matching.on && matching.include.contains(label))
        {
            let message = format!("label \"{label}\" must not occur in ON and GROUP clause at once");
            return self.fail(operator(), message);
        }
        for (side, side_type) in [(&binary.left, left), (&binary.right, right)] {
            if !matches!(side_type, ValueType::Scalar | ValueType::Vector) {
                let message = "binary expression must contain only scalar and instant vector types";
                return self.fail(side.span, message);
            }
        }
        if left == ValueType::Vector && right == ValueType::Vector {
            self.set_operator(binary, span)?;
            return Ok(ValueType::Vector);
        }
        if !matching.labels.is_empty() {
            return self.fail(span, "vector matching only allowed between instant vectors");
        }
        if matching.fill.left.is_some() || matching.fill.right.is_some() {
            return self.fail(span, "filling in missing series only allowed between instant vectors");
        }
        if op.is_set() {
            let message = format!("set operator \"{}\" not allowed in binary scalar expression", op.symbol());
            return self.fail(span, message);
        }
        Ok(if scalars { ValueType::Scalar } else { ValueType::Vector })
    }

    fn set_operator(&self, binary: &Binary, span: Span) -> Checked<()> {
        let matching = &binary.matching;
        if !binary.op.is_set() {
            return Ok(());
        }
        if matching.cardinality != Cardinality::ManyToMany {
            let message = format!("no grouping allowed for \"{}\" operation", binary.op.symbol());
            return self.fail(span, message);
        }
        if matching.fill.left.is_some() || matching.fill.right.is_some() {
            return self.fail(span, "filling in missing series not allowed for set operators");
        }
        Ok(())
    }

    /// The operator and its modifiers, without the blanks around them.
    fn operator_span(&self, binary: &Binary) -> Span {
        let (start, end) = (binary.left.span.end, binary.right.span.start);
        let between = &self.query[start..end];
        let blanks = between.len() - between.trim_start().len();
        // Prometheus's range ends at the operator's last byte, exclusive: so does a message's position.
        Span::new(start + blanks, (start + between.trim_end().len()).saturating_sub(1))
    }
}
