//! The syntax tree.
//!
//! Trees that come from the parser are bounded: nesting and the number of operators are limited
//! ([`crate::ParseLimits`]), so walking one recursively is safe. Durations that are written as
//! expressions (`[step() * 2]`) stay expressions until a query's step and range are known.

use saturn_model::Matcher;

use crate::Span;
use crate::functions::Function;

/// One node and where it stands in the text.
#[derive(Clone, Debug, PartialEq)]
pub struct Expr {
    /// The bytes that the node was read from.
    pub span: Span,
    /// What it is.
    pub kind: ExprKind,
}

/// The kinds of nodes.
#[derive(Clone, Debug, PartialEq)]
pub enum ExprKind {
    /// `42`, `0x2a`, `Inf`, or a duration standing for its seconds: `5m`.
    Number(NumberLiteral),
    /// `"text"`. Bytes, because escapes can make what is not UTF-8.
    Text(Vec<u8>),
    /// `up{job="x"} offset 5m`
    VectorSelector(VectorSelector),
    /// `up{job="x"}[5m]`
    MatrixSelector(MatrixSelector),
    /// `expression[1h:5m]`
    Subquery(Subquery),
    /// `rate(...)`
    Call(Call),
    /// `sum by (job) (...)`
    Aggregate(Box<Aggregate>),
    /// `a + b`
    Binary(Box<Binary>),
    /// `-a`
    Unary(UnaryOp, Box<Expr>),
    /// `(a)`
    Paren(Box<Expr>),
}

/// A number, and how it was written.
#[derive(Clone, Copy, Debug)]
pub struct NumberLiteral {
    /// Its value; for a duration in seconds.
    pub value: f64,
    /// Whether it was written as a duration.
    pub is_duration: bool,
}

/// The types of expressions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ValueType {
    /// One number.
    Scalar,
    /// One value for each series.
    Vector,
    /// A range of samples for each series.
    Matrix,
    /// A text.
    Text,
}

/// A selection of series at a time, of one sample each.
#[derive(Clone, Debug, PartialEq)]
pub struct VectorSelector {
    /// The name written before the braces, or "".
    pub name: String,
    /// All conditions; the name is among them, last.
    pub matchers: Vec<Matcher>,
    /// `offset` and `@`.
    pub time: TimeModifiers,
    /// `anchored` or `smoothed`.
    pub extension: Option<Extension>,
}

/// A selection of series over a range of time.
#[derive(Clone, Debug, PartialEq)]
pub struct MatrixSelector {
    /// Which series; carries the modifiers too.
    pub selector: VectorSelector,
    /// How far back.
    pub range: DurationSetting,
}

/// An instant expression evaluated over a range of time.
#[derive(Clone, Debug, PartialEq)]
pub struct Subquery {
    /// What is evaluated.
    pub expr: Box<Expr>,
    /// How far back.
    pub range: DurationSetting,
    /// How often; the server's default if not written.
    pub step: Option<DurationSetting>,
    /// `offset` and `@`.
    pub time: TimeModifiers,
}

/// `offset` and `@` of a selector.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TimeModifiers {
    /// How far into the past the selection is moved.
    pub offset: Option<DurationSetting>,
    /// The time that replaces the evaluation time.
    pub at: Option<At>,
}

/// What follows `@`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum At {
    /// Milliseconds since the epoch.
    Timestamp(i64),
    /// The start of the whole query.
    Start,
    /// The end of the whole query.
    End,
}

/// How a range selector treats the edges of its range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extension {
    /// The sample before the range belongs to it.
    Anchored,
    /// The edges are interpolated.
    Smoothed,
}

/// A duration in a selector.
#[derive(Clone, Debug, PartialEq)]
pub enum DurationSetting {
    /// Written as a literal, in milliseconds.
    Fixed(i64),
    /// Computed when the query's step and range are known.
    Computed(DurationExpr),
}

/// Arithmetic on durations, in seconds.
#[derive(Clone, Debug, PartialEq)]
pub struct DurationExpr {
    /// The bytes that it was read from.
    pub span: Span,
    /// What it is.
    pub kind: DurationExprKind,
}

/// The kinds of duration expressions.
#[derive(Clone, Debug, PartialEq)]
pub enum DurationExprKind {
    /// A number or a duration.
    Number(NumberLiteral),
    /// `step()`: the query's step.
    Step,
    /// `range()`: from the query's start to its end.
    Range,
    /// `-a`
    Negative(Box<DurationExpr>),
    /// `a + b`
    Binary(BinaryOp, Box<DurationExpr>, Box<DurationExpr>),
    /// `min_of(a, b)`
    MinOf(Box<DurationExpr>, Box<DurationExpr>),
    /// `max_of(a, b)`
    MaxOf(Box<DurationExpr>, Box<DurationExpr>),
    /// `(a)`
    Paren(Box<DurationExpr>),
}

/// A call of a function.
#[derive(Clone, Debug, PartialEq)]
pub struct Call {
    /// Which function.
    pub function: &'static Function,
    /// Its arguments, as many as were written.
    pub args: Vec<Expr>,
}

/// An aggregation.
#[derive(Clone, Debug, PartialEq)]
pub struct Aggregate {
    /// What is computed of each group.
    pub op: AggregateOp,
    /// What is aggregated.
    pub expr: Expr,
    /// The `5` of `topk(5, x)`.
    pub param: Option<Expr>,
    /// Which labels make the groups.
    pub grouping: Grouping,
}

/// Which labels make the groups of an aggregation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Grouping {
    /// Only these.
    By(Vec<String>),
    /// All but these and the name.
    Without(Vec<String>),
}

/// A binary operation.
#[derive(Clone, Debug, PartialEq)]
pub struct Binary {
    /// The operation.
    pub op: BinaryOp,
    /// Left of the operator.
    pub left: Expr,
    /// Right of the operator.
    pub right: Expr,
    /// How series find their partners; has meaning only between two vectors.
    pub matching: VectorMatching,
    /// Whether a comparison answers 0 or 1 rather than filtering.
    pub return_bool: bool,
}

/// How the series of two vectors find their partners.
#[derive(Clone, Debug, PartialEq)]
pub struct VectorMatching {
    /// How many of each side belong together.
    pub cardinality: Cardinality,
    /// Labels after `on` or `ignoring`.
    pub labels: Vec<String>,
    /// Whether `labels` are those after `on`.
    pub on: bool,
    /// Labels taken over from the one side.
    pub include: Vec<String>,
    /// Values for partners that are missing.
    pub fill: Fill,
}

/// Values for partners that are missing.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Fill {
    /// Of the left side.
    pub left: Option<f64>,
    /// Of the right side.
    pub right: Option<f64>,
}

/// How many series of each side belong together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cardinality {
    /// One of each.
    OneToOne,
    /// `group_left`
    ManyToOne,
    /// `group_right`
    OneToMany,
    /// Set operators.
    ManyToMany,
}

/// Unary operators.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnaryOp {
    /// `+`
    Plus,
    /// `-`
    Minus,
}

/// Binary operators.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BinaryOp {
    /// `+`
    Add,
    /// `-`
    Subtract,
    /// `*`
    Multiply,
    /// `/`
    Divide,
    /// `%`
    Modulo,
    /// `^`
    Power,
    /// `atan2`
    Atan2,
    /// `==`
    Equal,
    /// `!=`
    NotEqual,
    /// `>`
    Greater,
    /// `<`
    Less,
    /// `>=`
    GreaterEqual,
    /// `<=`
    LessEqual,
    /// `</`: cuts a histogram above a bound.
    TrimUpper,
    /// `>/`: cuts a histogram below a bound.
    TrimLower,
    /// `and`
    And,
    /// `or`
    Or,
    /// `unless`
    Unless,
}

/// Aggregations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AggregateOp {
    /// `sum`
    Sum,
    /// `avg`
    Avg,
    /// `count`
    Count,
    /// `min`
    Min,
    /// `max`
    Max,
    /// `group`
    Group,
    /// `stddev`
    Stddev,
    /// `stdvar`
    Stdvar,
    /// `topk`
    Topk,
    /// `bottomk`
    Bottomk,
    /// `count_values`
    CountValues,
    /// `quantile`
    Quantile,
    /// `limitk`
    Limitk,
    /// `limit_ratio`
    LimitRatio,
}

impl Expr {
    /// The type of the expression's value. Parsed expressions have passed the type check, so this needs
    /// only to look at the surface.
    pub fn value_type(&self) -> ValueType {
        match &self.kind {
            ExprKind::Number(_) => ValueType::Scalar,
            ExprKind::Text(_) => ValueType::Text,
            ExprKind::VectorSelector(_) | ExprKind::Aggregate(_) => ValueType::Vector,
            ExprKind::MatrixSelector(_) | ExprKind::Subquery(_) => ValueType::Matrix,
            ExprKind::Call(call) => call.function.returns,
            ExprKind::Unary(_, inner) | ExprKind::Paren(inner) => inner.value_type(),
            ExprKind::Binary(binary) => {
                // A chain of operators leans to the left: follow it without recursion.
                let mut left = binary;
                loop {
                    if left.right.value_type() != ValueType::Scalar {
                        return ValueType::Vector;
                    }
                    match &left.left.kind {
                        ExprKind::Binary(next) => left = next,
                        _ if left.left.value_type() == ValueType::Scalar => return ValueType::Scalar,
                        _ => return ValueType::Vector,
                    }
                }
            }
        }
    }

    /// The expression inside of any parentheses.
    pub fn without_parens(&self) -> &Expr {
        let mut expr = self;
        while let ExprKind::Paren(inner) = &expr.kind {
            expr = inner;
        }
        expr
    }

    /// The matchers of every selector in the expression, in the order of the text.
    pub fn selectors(&self) -> Vec<&[Matcher]> {
        let mut selectors = Vec::new();
        let mut open = vec![self];
        while let Some(expr) = open.pop() {
            match &expr.kind {
                ExprKind::VectorSelector(selector) => selectors.push(selector.matchers.as_slice()),
                ExprKind::MatrixSelector(matrix) => selectors.push(matrix.selector.matchers.as_slice()),
                _ => open.extend(expr.children().into_iter().rev()),
            }
        }
        selectors
    }

    /// The operands of this node, in the order of the text.
    pub fn children(&self) -> Vec<&Expr> {
        match &self.kind {
            ExprKind::Number(_)
            | ExprKind::Text(_)
            | ExprKind::VectorSelector(_)
            | ExprKind::MatrixSelector(_) => Vec::new(),
            ExprKind::Subquery(subquery) => vec![&subquery.expr],
            ExprKind::Call(call) => call.args.iter().collect(),
            ExprKind::Aggregate(aggregate) => aggregate.param.iter().chain([&aggregate.expr]).collect(),
            ExprKind::Binary(binary) => vec![&binary.left, &binary.right],
            ExprKind::Unary(_, inner) | ExprKind::Paren(inner) => vec![inner],
        }
    }
}

impl PartialEq for NumberLiteral {
    /// NaN equals NaN: two texts that say the same are the same expression.
    fn eq(&self, other: &Self) -> bool {
        let same_value = self.value == other.value || (self.value.is_nan() && other.value.is_nan());
        same_value && self.is_duration == other.is_duration
    }
}

impl ValueType {
    /// What the documentation calls the type.
    pub fn documented_name(self) -> &'static str {
        match self {
            ValueType::Scalar => "scalar",
            ValueType::Vector => "instant vector",
            ValueType::Matrix => "range vector",
            ValueType::Text => "string",
        }
    }

    /// What the API calls the type.
    pub fn api_name(self) -> &'static str {
        match self {
            ValueType::Scalar => "scalar",
            ValueType::Vector => "vector",
            ValueType::Matrix => "matrix",
            ValueType::Text => "string",
        }
    }
}

impl Default for VectorMatching {
    fn default() -> Self {
        Self {
            cardinality: Cardinality::OneToOne,
            labels: Vec::new(),
            on: false,
            include: Vec::new(),
            fill: Fill::default(),
        }
    }
}

impl Extension {
    /// As written.
    pub fn name(self) -> &'static str {
        match self {
            Extension::Anchored => "anchored",
            Extension::Smoothed => "smoothed",
        }
    }
}

impl UnaryOp {
    /// As written.
    pub fn symbol(self) -> &'static str {
        match self {
            UnaryOp::Plus => "+",
            UnaryOp::Minus => "-",
        }
    }
}

impl BinaryOp {
    /// As written.
    pub fn symbol(self) -> &'static str {
        match self {
            BinaryOp::Add => "+",
            BinaryOp::Subtract => "-",
            BinaryOp::Multiply => "*",
            BinaryOp::Divide => "/",
            BinaryOp::Modulo => "%",
            BinaryOp::Power => "^",
            BinaryOp::Atan2 => "atan2",
            BinaryOp::Equal => "==",
            BinaryOp::NotEqual => "!=",
            BinaryOp::Greater => ">",
            BinaryOp::Less => "<",
            BinaryOp::GreaterEqual => ">=",
            BinaryOp::LessEqual => "<=",
            BinaryOp::TrimUpper => "</",
            BinaryOp::TrimLower => ">/",
            BinaryOp::And => "and",
            BinaryOp::Or => "or",
            BinaryOp::Unless => "unless",
        }
    }

    /// Larger binds tighter.
    pub(crate) fn precedence(self) -> u8 {
        match self {
            BinaryOp::Or => 1,
            BinaryOp::And | BinaryOp::Unless => 2,
            BinaryOp::Equal
            | BinaryOp::NotEqual
            | BinaryOp::Greater
            | BinaryOp::Less
            | BinaryOp::GreaterEqual
            | BinaryOp::LessEqual
            | BinaryOp::TrimUpper
            | BinaryOp::TrimLower => 3,
            BinaryOp::Add | BinaryOp::Subtract => 4,
            BinaryOp::Multiply | BinaryOp::Divide | BinaryOp::Modulo | BinaryOp::Atan2 => 5,
            BinaryOp::Power => 6,
        }
    }

    /// `==`, `!=`, `<` and their like.
    pub fn is_comparison(self) -> bool {
        matches!(
            self,
            BinaryOp::Equal
                | BinaryOp::NotEqual
                | BinaryOp::Greater
                | BinaryOp::Less
                | BinaryOp::GreaterEqual
                | BinaryOp::LessEqual
        )
    }

    /// `+`, `-`, `*` and their like: operators whose result is a new metric.
    pub fn is_arithmetic(self) -> bool {
        matches!(
            self,
            BinaryOp::Add
                | BinaryOp::Subtract
                | BinaryOp::Multiply
                | BinaryOp::Divide
                | BinaryOp::Modulo
                | BinaryOp::Power
                | BinaryOp::Atan2
        )
    }

    /// `and`, `or`, `unless`.
    pub fn is_set(self) -> bool {
        matches!(self, BinaryOp::And | BinaryOp::Or | BinaryOp::Unless)
    }
}

impl AggregateOp {
    /// All of them.
    const ALL: [AggregateOp; 14] = [
        AggregateOp::Sum,
        AggregateOp::Avg,
        AggregateOp::Count,
        AggregateOp::Min,
        AggregateOp::Max,
        AggregateOp::Group,
        AggregateOp::Stddev,
        AggregateOp::Stdvar,
        AggregateOp::Topk,
        AggregateOp::Bottomk,
        AggregateOp::CountValues,
        AggregateOp::Quantile,
        AggregateOp::Limitk,
        AggregateOp::LimitRatio,
    ];

    /// As written.
    pub fn name(self) -> &'static str {
        match self {
            AggregateOp::Sum => "sum",
            AggregateOp::Avg => "avg",
            AggregateOp::Count => "count",
            AggregateOp::Min => "min",
            AggregateOp::Max => "max",
            AggregateOp::Group => "group",
            AggregateOp::Stddev => "stddev",
            AggregateOp::Stdvar => "stdvar",
            AggregateOp::Topk => "topk",
            AggregateOp::Bottomk => "bottomk",
            AggregateOp::CountValues => "count_values",
            AggregateOp::Quantile => "quantile",
            AggregateOp::Limitk => "limitk",
            AggregateOp::LimitRatio => "limit_ratio",
        }
    }

    pub(crate) fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|op| op.name() == name)
    }

    /// The type of its parameter, if it takes one.
    pub fn param_type(self) -> Option<ValueType> {
        match self {
            AggregateOp::Topk
            | AggregateOp::Bottomk
            | AggregateOp::Quantile
            | AggregateOp::Limitk
            | AggregateOp::LimitRatio => Some(ValueType::Scalar),
            AggregateOp::CountValues => Some(ValueType::Text),
            _ => None,
        }
    }
}
