//! Dense columns of results: series by steps, a value and its presence in each cell. Cells are floats; the few
//! series that hold native histograms have a second column for them.
//!
//! A block charges its cells to the query's budget before it allocates them and gives them back when it
//! is dropped, so that the memory of all blocks that live at one time is bounded.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use saturn_model::{Histogram, Labels};

use crate::error::EvalError;
use crate::eval::params::SampleValue;

/// How many samples a query may hold at one time.
#[derive(Clone, Debug)]
pub(crate) struct Budget {
    live: Arc<Live>,
    limit: usize,
}

/// How many samples are held now, and the most that ever were.
#[derive(Debug, Default)]
struct Live {
    now: AtomicUsize,
    peak: AtomicUsize,
}

/// A part of the budget, given back on drop.
#[derive(Debug)]
pub(crate) struct Charge {
    budget: Budget,
    samples: usize,
}

impl Budget {
    pub(crate) fn new(limit: usize) -> Self {
        Self { live: Arc::default(), limit }
    }

    /// The most samples that were held at one time.
    pub(crate) fn peak(&self) -> usize {
        self.live.peak.load(Ordering::Relaxed)
    }

    /// Takes nothing yet; see [`Charge::grow`].
    pub(crate) fn charge(&self) -> Charge {
        Charge { budget: self.clone(), samples: 0 }
    }
}

impl Charge {
    /// Takes `samples` more.
    pub(crate) fn grow(&mut self, samples: usize) -> Result<(), EvalError> {
        let Budget { live, limit } = &self.budget;
        let within = |now: usize| now.checked_add(samples).filter(|wanted| wanted <= limit);
        let before = live.now.fetch_update(Ordering::Relaxed, Ordering::Relaxed, within);
        let before = before.map_err(|_| EvalError::TooManySamples { limit: *limit })?;
        live.peak.fetch_max(before + samples, Ordering::Relaxed);
        self.samples += samples;
        Ok(())
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.budget.live.now.fetch_sub(self.samples, Ordering::Relaxed);
    }
}

/// What a series is called, and whether its name is to be removed in the end.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct SeriesName {
    pub(crate) labels: Labels,
    /// Set only with delayed name removal.
    pub(crate) drop_name: bool,
}

impl From<Labels> for SeriesName {
    fn from(labels: Labels) -> Self {
        Self { labels, drop_name: false }
    }
}

/// Series by steps.
#[derive(Debug)]
pub(crate) struct Block {
    steps: usize,
    pub(crate) names: Vec<SeriesName>,
    values: Vec<f64>,
    present: Vec<bool>,
    /// Parallel to `names`; only series that have any histogram have a place for each step.
    histograms: Vec<Option<HistogramCells>>,
    charge: Charge,
}

/// The histograms of one series. A present cell with a histogram is one, whatever its float.
pub(crate) type HistogramCells = Vec<Option<Arc<Histogram>>>;

/// One series of a block.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Row<'a> {
    pub(crate) values: &'a [f64],
    pub(crate) present: &'a [bool],
    histograms: Option<&'a [Option<Arc<Histogram>>]>,
}

/// One series of a block, to be changed.
#[derive(Debug)]
pub(crate) struct RowMut<'a> {
    pub(crate) values: &'a mut [f64],
    pub(crate) present: &'a mut [bool],
    histograms: &'a mut Option<HistogramCells>,
}

/// What a present cell holds.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Cell<'a> {
    Float(f64),
    Histogram(&'a Arc<Histogram>),
}

/// One series on its way into a block.
#[derive(Debug)]
pub(crate) struct Column {
    values: Vec<f64>,
    present: Vec<bool>,
    histograms: Option<HistogramCells>,
}

/// What a histogram costs of the budget, beyond the cell that it is in (Prometheus's `totalHPointSize`).
pub(crate) fn histogram_cost(histogram: &Histogram) -> usize {
    (histogram.size_bytes() + 8) / 16
}

impl Block {
    /// A block without series.
    pub(crate) fn new(steps: usize, budget: &Budget) -> Self {
        Self {
            steps,
            names: Vec::new(),
            values: Vec::new(),
            present: Vec::new(),
            histograms: Vec::new(),
            charge: budget.charge(),
        }
    }

    /// How many steps each series has.
    pub(crate) fn steps(&self) -> usize {
        self.steps
    }

    /// How many series there are.
    pub(crate) fn len(&self) -> usize {
        self.names.len()
    }

    /// Adds all series of a block of the same steps and budget.
    pub(crate) fn append(&mut self, mut other: Block) {
        self.names.append(&mut other.names);
        self.values.append(&mut other.values);
        self.present.append(&mut other.present);
        self.histograms.append(&mut other.histograms);
        self.charge.samples += std::mem::take(&mut other.charge.samples);
    }

    /// Adds a series of empty cells.
    pub(crate) fn push(&mut self, name: SeriesName) -> Result<RowMut<'_>, EvalError> {
        self.charge.grow(self.steps)?;
        self.names.push(name);
        self.values.resize(self.names.len() * self.steps, 0.0);
        self.present.resize(self.names.len() * self.steps, false);
        self.histograms.push(None);
        Ok(self.row_mut(self.names.len() - 1))
    }

    /// Adds a series with the cells of `row`.
    pub(crate) fn push_row(&mut self, name: SeriesName, row: Row<'_>) -> Result<(), EvalError> {
        if let Some(histograms) = row.histograms {
            // Shared with the row, but that may be gone sooner.
            self.charge.grow(histograms.iter().flatten().map(|histogram| histogram_cost(histogram)).sum())?;
        }
        let new = self.push(name)?;
        new.values.copy_from_slice(row.values);
        new.present.copy_from_slice(row.present);
        *new.histograms = row.histograms.map(<[_]>::to_vec);
        Ok(())
    }

    pub(crate) fn row(&self, index: usize) -> Row<'_> {
        let cells = index * self.steps..(index + 1) * self.steps;
        Row {
            values: &self.values[cells.clone()],
            present: &self.present[cells],
            histograms: self.histograms[index].as_deref(),
        }
    }

    pub(crate) fn row_mut(&mut self, index: usize) -> RowMut<'_> {
        let cells = index * self.steps..(index + 1) * self.steps;
        RowMut {
            values: &mut self.values[cells.clone()],
            present: &mut self.present[cells],
            histograms: &mut self.histograms[index],
        }
    }

    pub(crate) fn rows(&self) -> impl Iterator<Item = (&SeriesName, Row<'_>)> {
        self.names.iter().enumerate().map(|(index, name)| (name, self.row(index)))
    }

    /// Sets a cell, and charges what a histogram costs.
    pub(crate) fn set(&mut self, row: usize, step: usize, value: SampleValue) -> Result<(), EvalError> {
        if let SampleValue::Histogram(histogram) = &value {
            self.charge.grow(histogram_cost(histogram))?;
        }
        self.row_mut(row).set(step, value);
        Ok(())
    }

    /// Replaces every float; histograms go.
    pub(crate) fn map_floats(&mut self, mut f: impl FnMut(f64) -> f64) {
        self.remove_histograms();
        for (value, present) in self.values.iter_mut().zip(&self.present) {
            if *present {
                *value = f(*value);
            }
        }
    }

    /// Empties the cells that hold histograms.
    pub(crate) fn remove_histograms(&mut self) {
        for index in 0..self.len() {
            let row = self.row_mut(index);
            for (cell, present) in row.histograms.take().iter().flatten().zip(row.present) {
                *present &= cell.is_none();
            }
        }
    }

    /// Replaces every float, and every histogram by another one of the same size.
    pub(crate) fn map_all(
        &mut self,
        of_float: impl Fn(f64) -> f64,
        of_histogram: impl Fn(&Histogram) -> Histogram,
    ) {
        self.values.iter_mut().for_each(|value| *value = of_float(*value));
        for histogram in self.histograms.iter_mut().flatten().flatten().flatten() {
            *histogram = Arc::new(of_histogram(histogram));
        }
    }

    /// Whether any series has a value at `step`.
    pub(crate) fn any_at(&self, step: usize) -> bool {
        (0..self.len()).any(|index| self.present[index * self.steps + step])
    }

    /// A new block with the series at `indexes`, in that order.
    pub(crate) fn select(&self, indexes: &[usize]) -> Result<Block, EvalError> {
        let mut block = Block::new(self.steps, &self.charge.budget);
        for index in indexes {
            block.push_row(self.names[*index].clone(), self.row(*index))?;
        }
        Ok(block)
    }

    /// A block of `steps` steps, each of them like the only one of this block.
    pub(crate) fn repeated(&self, steps: usize) -> Result<Block, EvalError> {
        let mut block = Block::new(steps, &self.charge.budget);
        for (name, row) in self.rows() {
            let Some(cell) = row.get(0) else { continue };
            let mut column = Column::new(steps);
            (0..steps).for_each(|step| column.set(step, cell.into()));
            block.push_row(name.clone(), column.as_row())?;
        }
        Ok(block)
    }

    /// An empty block of the same shape and budget.
    pub(crate) fn like(&self) -> Block {
        Block::new(self.steps, &self.charge.budget)
    }
}

impl<'a> Row<'a> {
    /// What is at `step`, if anything is.
    pub(crate) fn get(&self, step: usize) -> Option<Cell<'a>> {
        self.present[step].then(|| match self.histograms.and_then(|cells| cells[step].as_ref()) {
            Some(histogram) => Cell::Histogram(histogram),
            None => Cell::Float(self.values[step]),
        })
    }

    /// The float at `step`, if there is one.
    pub(crate) fn float(&self, step: usize) -> Option<f64> {
        match self.get(step)? {
            Cell::Float(value) => Some(value),
            Cell::Histogram(_) => None,
        }
    }

    /// Whether no step has a value.
    pub(crate) fn is_empty(&self) -> bool {
        !self.present.contains(&true)
    }

    /// Whether any step has a histogram.
    pub(crate) fn has_histograms(&self) -> bool {
        self.histograms.is_some_and(|cells| {
            cells.iter().zip(self.present).any(|(cell, present)| *present && cell.is_some())
        })
    }

    /// The steps that have a value.
    pub(crate) fn cells(self) -> impl Iterator<Item = (usize, Cell<'a>)> {
        (0..self.present.len()).filter_map(move |step| Some((step, self.get(step)?)))
    }

    /// The steps that have a float.
    pub(crate) fn floats(self) -> impl Iterator<Item = (usize, f64)> {
        (0..self.present.len()).filter_map(move |step| Some((step, self.float(step)?)))
    }

    /// The steps that have a histogram.
    pub(crate) fn histograms(self) -> impl Iterator<Item = (usize, &'a Arc<Histogram>)> {
        let cells = self.histograms.unwrap_or_default().iter().enumerate();
        cells.filter_map(move |(step, cell)| Some((step, cell.as_ref()?)).filter(|_| self.present[step]))
    }
}

impl RowMut<'_> {
    /// Sets the float at `step`.
    pub(crate) fn set_float(&mut self, step: usize, value: f64) {
        if let Some(cells) = self.histograms {
            cells[step] = None;
        }
        self.values[step] = value;
        self.present[step] = true;
    }

    fn set(&mut self, step: usize, value: SampleValue) {
        match value {
            SampleValue::Float(value) => self.set_float(step, value),
            SampleValue::Histogram(histogram) => {
                let steps = self.present.len();
                self.histograms.get_or_insert_with(|| vec![None; steps])[step] = Some(histogram);
                self.present[step] = true;
            }
        }
    }
}

impl Column {
    /// A column of empty cells.
    pub(crate) fn new(steps: usize) -> Self {
        Self { values: vec![0.0; steps], present: vec![false; steps], histograms: None }
    }

    /// Empties all cells.
    pub(crate) fn clear(&mut self) {
        self.present.fill(false);
        self.histograms = None;
    }

    /// Sets the cell at `step`.
    pub(crate) fn set(&mut self, step: usize, value: SampleValue) {
        let Self { values, present, histograms } = self;
        RowMut { values, present, histograms }.set(step, value);
    }

    /// As a row that can be copied into a block.
    pub(crate) fn as_row(&self) -> Row<'_> {
        Row { values: &self.values, present: &self.present, histograms: self.histograms.as_deref() }
    }
}

impl From<Cell<'_>> for SampleValue {
    fn from(cell: Cell<'_>) -> Self {
        match cell {
            Cell::Float(value) => SampleValue::Float(value),
            Cell::Histogram(histogram) => SampleValue::Histogram(Arc::clone(histogram)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_charge_and_give_back() {
        let budget = Budget::new(10);
        let mut block = Block::new(4, &budget);
        for _ in 0..2 {
            block.push(Labels::empty().into()).expect("within the limit").set_float(1, 5.0);
        }
        assert!(matches!(block.push(Labels::empty().into()), Err(EvalError::TooManySamples { limit: 10 })));
        assert_eq!(block.row(1).floats().collect::<Vec<_>>(), [(1, 5.0)]);
        let mut joined = Block::new(4, &budget);
        joined.append(block);
        assert_eq!(joined.row(1).floats().collect::<Vec<_>>(), [(1, 5.0)]);
        let mut next = Block::new(10, &budget);
        assert!(next.push(Labels::empty().into()).is_err());
        drop(joined);
        assert!(next.push(Labels::empty().into()).is_ok());
    }
}
