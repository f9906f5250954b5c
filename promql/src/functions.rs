//! The functions of the language: names, types and numbers of arguments.
//!
//! What they compute is in `eval`; this table is what the parser and the checker need. Source: the
//! `Functions` table of Prometheus's `promql/parser/functions.go`.

use crate::syntax::ast::ValueType;

/// A function's name and type.
#[derive(Debug)]
pub struct Function {
    /// As written.
    pub name: &'static str,
    /// Which function.
    pub id: FunctionId,
    /// The types of its arguments; the last one repeats if it is variadic.
    pub args: &'static [ValueType],
    /// How many arguments at the end may be left out or added.
    pub variadic: Variadic,
    /// What it returns.
    pub returns: ValueType,
}

/// How many arguments at the end may be left out or added.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Variadic {
    /// All arguments must be given.
    No,
    /// The last may be left out, or given this often.
    UpTo(usize),
    /// The last may be left out, or given any number of times.
    Any,
}

/// All functions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "the names are the documentation")]
pub enum FunctionId {
    Abs,
    Absent,
    AbsentOverTime,
    Acos,
    Acosh,
    Asin,
    Asinh,
    Atan,
    Atanh,
    AvgOverTime,
    Ceil,
    Changes,
    Clamp,
    ClampMax,
    ClampMin,
    Cos,
    Cosh,
    CountOverTime,
    DayOfMonth,
    DayOfWeek,
    DayOfYear,
    DaysInMonth,
    Deg,
    Delta,
    Deriv,
    DoubleExponentialSmoothing,
    End,
    Exp,
    FirstOverTime,
    Floor,
    HistogramAvg,
    HistogramCount,
    HistogramFraction,
    HistogramQuantile,
    HistogramQuantiles,
    HistogramStddev,
    HistogramStdvar,
    HistogramSum,
    Hour,
    Idelta,
    Increase,
    Info,
    Irate,
    LabelJoin,
    LabelReplace,
    LastOverTime,
    Ln,
    Log10,
    Log2,
    MadOverTime,
    MaxOf,
    MaxOverTime,
    MinOf,
    MinOverTime,
    Minute,
    Month,
    Pi,
    PredictLinear,
    PresentOverTime,
    QuantileOverTime,
    Rad,
    Range,
    Rate,
    Resets,
    Round,
    Scalar,
    Sgn,
    Sin,
    Sinh,
    Sort,
    SortByLabel,
    SortByLabelDesc,
    SortDesc,
    Sqrt,
    Start,
    StartTimestamp,
    StddevOverTime,
    StdvarOverTime,
    Step,
    SumOverTime,
    Tan,
    Tanh,
    Time,
    Timestamp,
    TsOfFirstOverTime,
    TsOfLastOverTime,
    TsOfMaxOverTime,
    TsOfMinOverTime,
    Vector,
    Year,
}

/// The function called `name`.
pub fn function_named(name: &str) -> Option<&'static Function> {
    let at = FUNCTIONS.binary_search_by(|function| function.name.cmp(name)).ok()?;
    Some(&FUNCTIONS[at])
}

impl PartialEq for Function {
    fn eq(&self, other: &Self) -> bool {
        self.id == other.id
    }
}

const NONE: &[ValueType] = &[];
const SCALAR: &[ValueType] = &[ValueType::Scalar];
const VECTOR: &[ValueType] = &[ValueType::Vector];
const MATRIX: &[ValueType] = &[ValueType::Matrix];
const SCALAR_SCALAR: &[ValueType] = &[ValueType::Scalar, ValueType::Scalar];
const SCALAR_MATRIX: &[ValueType] = &[ValueType::Scalar, ValueType::Matrix];
const SCALAR_VECTOR: &[ValueType] = &[ValueType::Scalar, ValueType::Vector];
const MATRIX_SCALAR: &[ValueType] = &[ValueType::Matrix, ValueType::Scalar];
const VECTOR_SCALAR: &[ValueType] = &[ValueType::Vector, ValueType::Scalar];
const VECTOR_TEXT: &[ValueType] = &[ValueType::Vector, ValueType::Text];
const VECTOR_VECTOR: &[ValueType] = &[ValueType::Vector, ValueType::Vector];

/// A function of a fixed number of arguments that returns a vector.
const fn fixed(name: &'static str, id: FunctionId, args: &'static [ValueType]) -> Function {
    Function { name, id, args, variadic: Variadic::No, returns: ValueType::Vector }
}

/// A function whose last argument may be left out or repeated.
const fn variadic(
    name: &'static str,
    id: FunctionId,
    args: &'static [ValueType],
    variadic: Variadic,
) -> Function {
    Function { name, id, args, variadic, returns: ValueType::Vector }
}

/// A function that returns a scalar.
const fn scalar(name: &'static str, id: FunctionId, args: &'static [ValueType]) -> Function {
    Function { name, id, args, variadic: Variadic::No, returns: ValueType::Scalar }
}

/// Sorted by name.
static FUNCTIONS: &[Function] = &[
    fixed("abs", FunctionId::Abs, VECTOR),
    fixed("absent", FunctionId::Absent, VECTOR),
    fixed("absent_over_time", FunctionId::AbsentOverTime, MATRIX),
    fixed("acos", FunctionId::Acos, VECTOR),
    fixed("acosh", FunctionId::Acosh, VECTOR),
    fixed("asin", FunctionId::Asin, VECTOR),
    fixed("asinh", FunctionId::Asinh, VECTOR),
    fixed("atan", FunctionId::Atan, VECTOR),
    fixed("atanh", FunctionId::Atanh, VECTOR),
    fixed("avg_over_time", FunctionId::AvgOverTime, MATRIX),
    fixed("ceil", FunctionId::Ceil, VECTOR),
    fixed("changes", FunctionId::Changes, MATRIX),
    fixed("clamp", FunctionId::Clamp, &[ValueType::Vector, ValueType::Scalar, ValueType::Scalar]),
    fixed("clamp_max", FunctionId::ClampMax, VECTOR_SCALAR),
    fixed("clamp_min", FunctionId::ClampMin, VECTOR_SCALAR),
    fixed("cos", FunctionId::Cos, VECTOR),
    fixed("cosh", FunctionId::Cosh, VECTOR),
    fixed("count_over_time", FunctionId::CountOverTime, MATRIX),
    variadic("day_of_month", FunctionId::DayOfMonth, VECTOR, Variadic::UpTo(1)),
    variadic("day_of_week", FunctionId::DayOfWeek, VECTOR, Variadic::UpTo(1)),
    variadic("day_of_year", FunctionId::DayOfYear, VECTOR, Variadic::UpTo(1)),
    variadic("days_in_month", FunctionId::DaysInMonth, VECTOR, Variadic::UpTo(1)),
    fixed("deg", FunctionId::Deg, VECTOR),
    fixed("delta", FunctionId::Delta, MATRIX),
    fixed("deriv", FunctionId::Deriv, MATRIX),
    fixed(
        "double_exponential_smoothing",
        FunctionId::DoubleExponentialSmoothing,
        &[ValueType::Matrix, ValueType::Scalar, ValueType::Scalar],
    ),
    scalar("end", FunctionId::End, NONE),
    fixed("exp", FunctionId::Exp, VECTOR),
    fixed("first_over_time", FunctionId::FirstOverTime, MATRIX),
    fixed("floor", FunctionId::Floor, VECTOR),
    fixed("histogram_avg", FunctionId::HistogramAvg, VECTOR),
    fixed("histogram_count", FunctionId::HistogramCount, VECTOR),
    fixed(
        "histogram_fraction",
        FunctionId::HistogramFraction,
        &[ValueType::Scalar, ValueType::Scalar, ValueType::Vector],
    ),
    fixed("histogram_quantile", FunctionId::HistogramQuantile, SCALAR_VECTOR),
    variadic(
        "histogram_quantiles",
        FunctionId::HistogramQuantiles,
        &[ValueType::Vector, ValueType::Text, ValueType::Scalar, ValueType::Scalar],
        Variadic::UpTo(9),
    ),
    fixed("histogram_stddev", FunctionId::HistogramStddev, VECTOR),
    fixed("histogram_stdvar", FunctionId::HistogramStdvar, VECTOR),
    fixed("histogram_sum", FunctionId::HistogramSum, VECTOR),
    variadic("hour", FunctionId::Hour, VECTOR, Variadic::UpTo(1)),
    fixed("idelta", FunctionId::Idelta, MATRIX),
    fixed("increase", FunctionId::Increase, MATRIX),
    variadic("info", FunctionId::Info, VECTOR_VECTOR, Variadic::UpTo(1)),
    fixed("irate", FunctionId::Irate, MATRIX),
    variadic(
        "label_join",
        FunctionId::LabelJoin,
        &[ValueType::Vector, ValueType::Text, ValueType::Text, ValueType::Text],
        Variadic::Any,
    ),
    fixed(
        "label_replace",
        FunctionId::LabelReplace,
        &[ValueType::Vector, ValueType::Text, ValueType::Text, ValueType::Text, ValueType::Text],
    ),
    fixed("last_over_time", FunctionId::LastOverTime, MATRIX),
    fixed("ln", FunctionId::Ln, VECTOR),
    fixed("log10", FunctionId::Log10, VECTOR),
    fixed("log2", FunctionId::Log2, VECTOR),
    fixed("mad_over_time", FunctionId::MadOverTime, MATRIX),
    scalar("max_of", FunctionId::MaxOf, SCALAR_SCALAR),
    fixed("max_over_time", FunctionId::MaxOverTime, MATRIX),
    scalar("min_of", FunctionId::MinOf, SCALAR_SCALAR),
    fixed("min_over_time", FunctionId::MinOverTime, MATRIX),
    variadic("minute", FunctionId::Minute, VECTOR, Variadic::UpTo(1)),
    variadic("month", FunctionId::Month, VECTOR, Variadic::UpTo(1)),
    scalar("pi", FunctionId::Pi, NONE),
    fixed("predict_linear", FunctionId::PredictLinear, MATRIX_SCALAR),
    fixed("present_over_time", FunctionId::PresentOverTime, MATRIX),
    fixed("quantile_over_time", FunctionId::QuantileOverTime, SCALAR_MATRIX),
    fixed("rad", FunctionId::Rad, VECTOR),
    scalar("range", FunctionId::Range, NONE),
    fixed("rate", FunctionId::Rate, MATRIX),
    fixed("resets", FunctionId::Resets, MATRIX),
    variadic("round", FunctionId::Round, VECTOR_SCALAR, Variadic::UpTo(1)),
    scalar("scalar", FunctionId::Scalar, VECTOR),
    fixed("sgn", FunctionId::Sgn, VECTOR),
    fixed("sin", FunctionId::Sin, VECTOR),
    fixed("sinh", FunctionId::Sinh, VECTOR),
    fixed("sort", FunctionId::Sort, VECTOR),
    variadic("sort_by_label", FunctionId::SortByLabel, VECTOR_TEXT, Variadic::Any),
    variadic("sort_by_label_desc", FunctionId::SortByLabelDesc, VECTOR_TEXT, Variadic::Any),
    fixed("sort_desc", FunctionId::SortDesc, VECTOR),
    fixed("sqrt", FunctionId::Sqrt, VECTOR),
    scalar("start", FunctionId::Start, NONE),
    fixed("start_timestamp", FunctionId::StartTimestamp, VECTOR),
    fixed("stddev_over_time", FunctionId::StddevOverTime, MATRIX),
    fixed("stdvar_over_time", FunctionId::StdvarOverTime, MATRIX),
    scalar("step", FunctionId::Step, NONE),
    fixed("sum_over_time", FunctionId::SumOverTime, MATRIX),
    fixed("tan", FunctionId::Tan, VECTOR),
    fixed("tanh", FunctionId::Tanh, VECTOR),
    scalar("time", FunctionId::Time, NONE),
    fixed("timestamp", FunctionId::Timestamp, VECTOR),
    fixed("ts_of_first_over_time", FunctionId::TsOfFirstOverTime, MATRIX),
    fixed("ts_of_last_over_time", FunctionId::TsOfLastOverTime, MATRIX),
    fixed("ts_of_max_over_time", FunctionId::TsOfMaxOverTime, MATRIX),
    fixed("ts_of_min_over_time", FunctionId::TsOfMinOverTime, MATRIX),
    fixed("vector", FunctionId::Vector, SCALAR),
    variadic("year", FunctionId::Year, VECTOR, Variadic::UpTo(1)),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_sorted() {
        assert!(FUNCTIONS.is_sorted_by(|a, b| a.name < b.name));
        assert!(function_named("rate").is_some());
        assert!(function_named("holt_winters").is_none());
    }
}
