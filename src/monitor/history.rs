//! The last hour and the last day of one gate on a grid of the wall clock, so that several gates
//! can be shown together. Its size is fixed.

use std::collections::VecDeque;

use jiff::Timestamp;

use super::figures::{Activity, Figures};
use super::series::Window;

/// The seconds from one slot of a grid to the next, and the number of slots that a window shows.
const HOUR: (i64, usize) = (30, 120);
const DAY: (i64, usize) = (600, 144);

impl Window {
    /// Returns the seconds from one slot to the next, and the number of slots.
    pub(super) fn grid(self) -> (i64, usize) {
        match self {
            Window::Hour => HOUR,
            Window::Day => DAY,
        }
    }

    /// Returns the number of the slot of a time.
    pub(super) fn slot(self, at: Timestamp) -> i64 {
        at.as_second().div_euclid(self.grid().0)
    }
}

/// The grids of one gate.
#[derive(Debug, Default)]
pub(super) struct History {
    hour: Grid,
    day: Grid,
}

/// Figures by the number of their slot, in ascending order, without empty slots.
#[derive(Debug, Default)]
struct Grid(VecDeque<(i64, Figures)>);

impl History {
    /// Adds newer figures.
    pub(super) fn add(&mut self, figures: &Figures) {
        self.hour.add(figures, Window::Hour);
        self.day.add(figures, Window::Day);
    }

    /// Returns the rates in a slot; none if nothing is known.
    pub(super) fn activity(&self, window: Window, slot: i64) -> Option<Activity> {
        let Grid(slots) = match window {
            Window::Hour => &self.hour,
            Window::Day => &self.day,
        };
        let found = slots.binary_search_by_key(&slot, |(slot, _)| *slot).ok();
        found.and_then(|index| slots.get(index)).map(|(_, figures)| Activity::of(figures))
    }
}

impl Grid {
    fn add(&mut self, figures: &Figures, window: Window) {
        let (slot, (_, capacity)) = (window.slot(figures.at), window.grid());
        // The clock was set back: what was in the future is no longer true.
        while self.0.back().is_some_and(|(last, _)| *last > slot) {
            self.0.pop_back();
        }
        match self.0.back_mut() {
            Some((last, sum)) if *last == slot => sum.add(figures),
            _ => self.0.push_back((slot, figures.clone())),
        }
        // One more than a window shows: it may begin in the middle of a slot.
        while self.0.len() > capacity + 1 {
            self.0.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figures(second: i64) -> Figures {
        let at = Timestamp::from_second(second).unwrap();
        Figures { at, seconds: 10.0, loans: 1, ..Figures::default() }
    }

    #[test]
    fn grid_has_a_fixed_size_and_gaps() {
        let mut history = History::default();
        let start = 1_790_000_010;
        // A day and an hour, without the last but one minute of it.
        for step in 0..9000 {
            if !(8988..8994).contains(&step) {
                history.add(&figures(start + 10 * step));
            }
        }
        let end = Timestamp::from_second(start + 10 * 8999).unwrap();
        for window in [Window::Hour, Window::Day] {
            let (last, (_, count)) = (window.slot(end), window.grid());
            let count = i64::try_from(count).unwrap();
            let known = (last - 2 * count..=last)
                .filter_map(|slot| history.activity(window, slot))
                .inspect(|activity| assert!((activity.loans - 6.0).abs() < 0.001, "{activity:?}"));
            assert_eq!(known.count(), if window == Window::Hour { 121 } else { 145 });
        }
        let gap = Window::Hour.slot(Timestamp::from_second(start + 10 * 8991).unwrap());
        assert_eq!(history.activity(Window::Hour, gap), None);
    }

    #[test]
    fn clock_that_is_set_back_removes_the_future() {
        let mut history = History::default();
        let slot = |second| Window::Hour.slot(Timestamp::from_second(second).unwrap());
        let future = [7200, 7230, 7260];
        future.iter().for_each(|second| history.add(&figures(*second)));
        history.add(&figures(3600));
        for second in future {
            assert_eq!(history.activity(Window::Hour, slot(second)), None);
        }
        assert!(history.activity(Window::Hour, slot(3600)).is_some());
    }
}
