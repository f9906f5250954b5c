//! Dense columns of results: series by steps, a value and its presence in each cell.
//!
//! A block charges its cells to the query's budget before it allocates them and gives them back when it
//! is dropped, so that the memory of all blocks that live at one time is bounded.

use std::cell::Cell;
use std::rc::Rc;

use saturn_model::Labels;

use crate::error::EvalError;

/// How many samples a query may hold at one time.
#[derive(Clone, Debug)]
pub(crate) struct Budget {
    live: Rc<Cell<usize>>,
    limit: usize,
}

/// A part of the budget, given back on drop.
#[derive(Debug)]
pub(crate) struct Charge {
    budget: Budget,
    samples: usize,
}

impl Budget {
    pub(crate) fn new(limit: usize) -> Self {
        Self { live: Rc::default(), limit }
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
        let wanted = live.get().saturating_add(samples);
        if wanted > *limit {
            return Err(EvalError::TooManySamples { limit: *limit });
        }
        live.set(wanted);
        self.samples += samples;
        Ok(())
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        let live = &self.budget.live;
        live.set(live.get() - self.samples);
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
    charge: Charge,
}

/// One series of a block.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Row<'a> {
    pub(crate) values: &'a [f64],
    pub(crate) present: &'a [bool],
}

/// One series of a block, to be changed.
#[derive(Debug)]
pub(crate) struct RowMut<'a> {
    pub(crate) values: &'a mut [f64],
    pub(crate) present: &'a mut [bool],
}

impl Block {
    /// A block without series.
    pub(crate) fn new(steps: usize, budget: &Budget) -> Self {
        Self { steps, names: Vec::new(), values: Vec::new(), present: Vec::new(), charge: budget.charge() }
    }

    /// How many steps each series has.
    pub(crate) fn steps(&self) -> usize {
        self.steps
    }

    /// How many series there are.
    pub(crate) fn len(&self) -> usize {
        self.names.len()
    }

    /// Adds a series of empty cells.
    pub(crate) fn push(&mut self, name: SeriesName) -> Result<RowMut<'_>, EvalError> {
        self.charge.grow(self.steps)?;
        self.names.push(name);
        self.values.resize(self.names.len() * self.steps, 0.0);
        self.present.resize(self.names.len() * self.steps, false);
        Ok(self.row_mut(self.names.len() - 1))
    }

    /// Adds a series with the cells of `row`.
    pub(crate) fn push_row(&mut self, name: SeriesName, row: Row<'_>) -> Result<(), EvalError> {
        let new = self.push(name)?;
        new.values.copy_from_slice(row.values);
        new.present.copy_from_slice(row.present);
        Ok(())
    }

    pub(crate) fn row(&self, index: usize) -> Row<'_> {
        let cells = index * self.steps..(index + 1) * self.steps;
        Row { values: &self.values[cells.clone()], present: &self.present[cells] }
    }

    pub(crate) fn row_mut(&mut self, index: usize) -> RowMut<'_> {
        let cells = index * self.steps..(index + 1) * self.steps;
        RowMut { values: &mut self.values[cells.clone()], present: &mut self.present[cells] }
    }

    pub(crate) fn rows(&self) -> impl Iterator<Item = (&SeriesName, Row<'_>)> {
        self.names.iter().enumerate().map(|(index, name)| (name, self.row(index)))
    }

    /// Replaces every present value.
    pub(crate) fn map(&mut self, mut f: impl FnMut(f64) -> f64) {
        for (value, present) in self.values.iter_mut().zip(&self.present) {
            if *present {
                *value = f(*value);
            }
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

    /// An empty block of the same shape and budget.
    pub(crate) fn like(&self) -> Block {
        Block::new(self.steps, &self.charge.budget)
    }
}

impl<'a> Row<'a> {
    /// The value at `step`, if there is one.
    pub(crate) fn get(&self, step: usize) -> Option<f64> {
        self.present[step].then(|| self.values[step])
    }

    /// Whether no step has a value.
    pub(crate) fn is_empty(&self) -> bool {
        !self.present.contains(&true)
    }

    /// The steps that have a value.
    pub(crate) fn cells(self) -> impl Iterator<Item = (usize, f64)> + 'a {
        self.values.iter().zip(self.present).enumerate().filter_map(|(step, (v, p))| p.then_some((step, *v)))
    }
}

impl RowMut<'_> {
    /// Sets the value at `step`.
    pub(crate) fn set(&mut self, step: usize, value: f64) {
        self.values[step] = value;
        self.present[step] = true;
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
            block.push(Labels::empty().into()).expect("within the limit").set(1, 5.0);
        }
        assert!(matches!(block.push(Labels::empty().into()), Err(EvalError::TooManySamples { limit: 10 })));
        assert_eq!(block.row(1).cells().collect::<Vec<_>>(), [(1, 5.0)]);
        drop(block);
        let mut next = Block::new(10, &budget);
        assert!(next.push(Labels::empty().into()).is_ok());
    }
}
