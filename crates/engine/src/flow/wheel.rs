//! A timing wheel over slab places: when each is to be looked at again.
//!
//! Deadlines beyond one turn are parked at its end and placed again when they come up. A flow that
//! was used meanwhile has a later deadline and is just placed again, so that packets touch no
//! timer. Places that belong to no flow are chained through the same links.

use std::io;

use mem::Table;

use crate::clock::Tick;

/// Slots of one turn.
const SLOTS: usize = 4096;
/// Ticks of one slot, as a shift: about 268 ms, so that a turn is 18 minutes.
const SLOT_SHIFT: u32 = 2;
/// Slots are counted modulo this, the range of ticks; a multiple of a turn.
const COUNT_MASK: u32 = u32::MAX >> SLOT_SHIFT;
/// A link's value that says "none".
const NONE: u32 = 0;
/// A `previous` link with this bit names a slot of the wheel, of which the place is the head.
const HEAD: u32 = 1 << 31;

#[derive(Debug)]
pub(crate) struct Wheel {
    /// First place of each slot, plus one.
    heads: Vec<u32>,
    /// Next and previous place, plus one.
    links: Table<[u32; 2]>,
    free: u32,
    /// The slot to look at next, counted without wrapping at the turn.
    cursor: u32,
}

impl Wheel {
    pub(crate) fn new(capacity: usize) -> io::Result<Wheel> {
        Ok(Wheel {
            heads: vec![NONE; SLOTS],
            links: Table::new(capacity)?,
            free: NONE,
            cursor: 0,
        })
    }

    /// Begins to count at `now`; to be called before anything is placed.
    pub(crate) fn start(&mut self, now: Tick) {
        self.cursor = now.0 >> SLOT_SHIFT;
    }

    /// A place given back, to be used again.
    pub(crate) fn take_free(&mut self) -> Option<u32> {
        let place = self.free.checked_sub(1)?;
        self.free = self.links[place as usize][0];
        Some(place)
    }

    /// Gives a place back; it is in no slot.
    pub(crate) fn put_free(&mut self, place: u32) {
        self.links[place as usize][0] = self.free;
        self.free = place + 1;
    }

    /// Puts a place that is in no slot where it comes up at `deadline`, at most one turn ahead of the slot that is looked
    /// at next: further, what is late would meet it again at once, and never catch up.
    pub(crate) fn place(&mut self, place: u32, now: Tick, deadline: Tick) {
        let late = (now.0 >> SLOT_SHIFT).wrapping_sub(self.cursor);
        // Sign-extended from the range in which slots are counted.
        let late = (late << SLOT_SHIFT).cast_signed() >> SLOT_SHIFT;
        let ahead = deadline.since(now).div_ceil(1 << SLOT_SHIFT);
        let ahead = ahead.clamp(1, SLOTS as u32).cast_signed();
        let from_cursor = (late + ahead).clamp(0, SLOTS as i32 - 2);
        let slot = self.cursor.wrapping_add_signed(from_cursor) as usize % SLOTS;
        let head = self.heads[slot];
        self.links[place as usize] = [head, HEAD | slot as u32];
        if head != NONE {
            self.links[head as usize - 1][1] = place + 1;
        }
        self.heads[slot] = place + 1;
    }

    /// Takes a place out of its slot.
    pub(crate) fn unlink(&mut self, place: u32) {
        let [next, previous] = self.links[place as usize];
        if previous & HEAD != 0 {
            self.heads[(previous & !HEAD) as usize] = next;
        } else {
            self.links[previous as usize - 1][0] = next;
        }
        if next != NONE {
            self.links[next as usize - 1][1] = previous;
        }
    }

    /// Takes out and returns the next place that has come up by `now`; none when there is no
    /// more, or `slots` slots have been passed (and subtracted).
    pub(crate) fn pop(&mut self, now: Tick, slots: &mut u32) -> Option<u32> {
        let behind = (now.0 >> SLOT_SHIFT).wrapping_add(1);
        let mut left = behind.wrapping_sub(self.cursor) & COUNT_MASK;
        if left > COUNT_MASK / 2 {
            // Time stands before the cursor: nothing is due.
            return None;
        }
        if left > SLOTS as u32 {
            // After a jump of more than a turn every slot comes up once.
            left = SLOTS as u32;
            self.cursor = behind.wrapping_sub(left) & COUNT_MASK;
        }
        while left > 0 {
            let head = self.heads[self.cursor as usize % SLOTS];
            if head != NONE {
                self.unlink(head - 1);
                return Some(head - 1);
            }
            *slots = slots.checked_sub(1)?;
            self.cursor = (self.cursor + 1) & COUNT_MASK;
            left -= 1;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn drain(wheel: &mut Wheel, now: Tick) -> Vec<u32> {
        let mut slots = u32::MAX;
        let mut due: Vec<u32> = std::iter::from_fn(|| wheel.pop(now, &mut slots)).collect();
        due.sort_unstable();
        due
    }

    #[test]
    fn comes_up_at_its_deadline_and_not_before() {
        let mut wheel = Wheel::new(4).unwrap();
        let start = Tick(u32::MAX - 100);
        wheel.start(start);
        wheel.place(0, start, start.plus(40));
        wheel.place(1, start, start.plus(400));
        assert!(drain(&mut wheel, start.plus(30)).is_empty());
        assert_eq!(drain(&mut wheel, start.plus(48)), [0]);
        assert_eq!(drain(&mut wheel, start.plus(408)), [1]);
    }

    #[test]
    fn a_jump_brings_everything_up_once() {
        let mut wheel = Wheel::new(4).unwrap();
        wheel.start(Tick(0));
        for place in 0..4 {
            wheel.place(place, Tick(0), Tick(place * 5000));
        }
        assert_eq!(drain(&mut wheel, Tick(10_000_000)), [0, 1, 2, 3]);
        assert!(drain(&mut wheel, Tick(20_000_000)).is_empty());
    }

    /// As a worker turns: a few places each time, which are all used still and placed again. Returns how many came up.
    fn turn(wheel: &mut Wheel, from: u32, to: u32) -> usize {
        let mut came = 0;
        for tick in from..to {
            let now = Tick(tick);
            for _ in 0..4 {
                let mut budget = 48;
                while budget > 0
                    && let Some(place) = wheel.pop(now, &mut budget)
                {
                    budget -= 1;
                    came += 1;
                    wheel.place(place, now, now.plus(100_000));
                }
            }
        }
        came
    }

    #[test]
    fn what_comes_late_is_caught_up_with() {
        const PLACES: u32 = 4000;
        let turn_ticks = (SLOTS as u32) << SLOT_SHIFT;
        let mut wheel = Wheel::new(PLACES as usize).unwrap();
        wheel.start(Tick(0));
        for place in 0..PLACES {
            wheel.place(place, Tick(place), Tick(place + 100_000));
        }
        let mut now = turn_ticks + 1000;
        turn(&mut wheel, 0, now);
        for stall in [3, 8, 40, 4000, turn_ticks - 8, turn_ticks] {
            now += stall;
            let came = turn(&mut wheel, now, now + turn_ticks);
            now += turn_ticks;
            // Each once in a turn of the wheel, and again for what the pause has brought together.
            assert!(came <= 2 * PLACES as usize, "{stall}: {came}");
            assert!(came >= PLACES as usize / 2, "{stall}: {came}");
        }
    }

    #[test]
    fn free_places_are_used_again() {
        let mut wheel = Wheel::new(4).unwrap();
        assert_eq!(wheel.take_free(), None);
        wheel.put_free(2);
        wheel.put_free(0);
        assert_eq!(
            [wheel.take_free(), wheel.take_free(), wheel.take_free()],
            [Some(0), Some(2), None]
        );
    }

    proptest! {
        #[test]
        fn nothing_is_lost(
            deadlines in proptest::collection::vec(0u32..30_000, 1..40),
            removed in proptest::collection::vec(any::<bool>(), 40),
            step in 1u32..3000,
        ) {
            let mut wheel = Wheel::new(40).unwrap();
            wheel.start(Tick(0));
            for (i, d) in deadlines.iter().enumerate() {
                wheel.place(i as u32, Tick(0), Tick(*d));
            }
            let mut left: Vec<u32> = Vec::new();
            for (i, removed) in (0..deadlines.len() as u32).zip(&removed) {
                if *removed { wheel.unlink(i) } else { left.push(i) }
            }
            let mut now = Tick(0);
            while !left.is_empty() {
                now = now.plus(step);
                for place in drain(&mut wheel, now) {
                    let deadline = Tick(deadlines[place as usize]);
                    if deadline.since(now) == 0 {
                        left.retain(|p| *p != place);
                    } else {
                        wheel.place(place, now, deadline);
                    }
                }
                prop_assert!(now.0 < 60_000);
                for p in &left {
                    // At most one slot late.
                    prop_assert!(deadlines[*p as usize] + 8 > now.0);
                }
            }
        }
    }
}
