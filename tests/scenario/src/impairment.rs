//! What a bad link does to frames: it loses some, holds all for a while, and lets some overtake others. Decisions only,
//! the same for the same seed; the frames themselves are moved by the link.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

/// Frames that wait in one direction; more are lost, as before any full queue.
const HELD_FRAMES_MAX: usize = 20_000;

/// How bad a link is, in each direction.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Impairment {
    /// So many frames of a thousand are lost.
    pub loss_per_mille: u64,
    /// Each frame is held for so long.
    pub delay: Duration,
    /// And for up to so much longer, any part of it being as likely: frames overtake each other.
    pub jitter: Duration,
}

/// What became of the frames of a link.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FrameCounts {
    /// Arrived.
    pub passed: u64,
    /// Arrived behind one that was sent later.
    pub overtaken: u64,
    /// Did not arrive.
    pub lost: u64,
}

/// One direction of a link.
pub(crate) struct Lane<F> {
    dice: u64,
    /// The earliest first, then the one that was sent first.
    held: BinaryHeap<Reverse<Held<F>>>,
    taken: u64,
    /// One more than the number of the latest frame that has passed.
    passed_until: u64,
    counts: FrameCounts,
}

struct Held<F> {
    until: Duration,
    number: u64,
    frame: F,
}

impl<F> Lane<F> {
    /// An empty one.
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            dice: seed,
            held: BinaryHeap::new(),
            taken: 0,
            passed_until: 0,
            counts: FrameCounts::default(),
        }
    }

    /// Loses a frame or holds it. Times count from any one moment.
    pub(crate) fn take(&mut self, frame: F, impairment: &Impairment, now: Duration) {
        // As many throws whatever the impairment is: a seed means the same under all.
        let (chance, part) = (self.throw() % 1000, self.throw() % 1_000_000);
        let number = self.taken;
        self.taken += 1;
        if chance < impairment.loss_per_mille || self.held.len() >= HELD_FRAMES_MAX {
            self.counts.lost += 1;
            return;
        }
        let longer = u64::try_from(impairment.jitter.as_micros()).unwrap() * part / 1_000_000;
        let until = now + impairment.delay + Duration::from_micros(longer);
        self.held.push(Reverse(Held { until, number, frame }));
    }

    /// A frame that arrives now or should have by now; ask until there is none.
    pub(crate) fn arrived(&mut self, now: Duration) -> Option<F> {
        if self.next_at()? > now {
            return None;
        }
        let Reverse(held) = self.held.pop()?;
        self.counts.passed += 1;
        if held.number < self.passed_until {
            self.counts.overtaken += 1;
        } else {
            self.passed_until = held.number + 1;
        }
        Some(held.frame)
    }

    /// When the next one arrives.
    pub(crate) fn next_at(&self) -> Option<Duration> {
        self.held.peek().map(|Reverse(held)| held.until)
    }

    /// What became of those taken so far; those held are in none of the numbers.
    pub(crate) fn counts(&self) -> FrameCounts {
        self.counts
    }

    /// SplitMix64.
    fn throw(&mut self) -> u64 {
        self.dice = self.dice.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.dice;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }
}

impl<F> Held<F> {
    fn place(&self) -> (Duration, u64) {
        (self.until, self.number)
    }
}

impl<F> PartialEq for Held<F> {
    fn eq(&self, other: &Self) -> bool {
        self.place() == other.place()
    }
}

impl<F> Eq for Held<F> {}

impl<F> PartialOrd for Held<F> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl<F> Ord for Held<F> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.place().cmp(&other.place())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FRAMES: u32 = 10_000;

    /// Numbered frames, one after another: when each arrives, and which.
    fn arrivals(seed: u64, impairment: Impairment) -> (Vec<(Duration, u32)>, FrameCounts) {
        let mut lane = Lane::new(seed);
        (0..FRAMES).for_each(|number| lane.take(number, &impairment, sent(number)));
        let mut arrived = Vec::new();
        while let Some(at) = lane.next_at() {
            assert!(lane.arrived(at - Duration::from_nanos(1)).is_none(), "before its time");
            arrived.push((at, lane.arrived(at).unwrap()));
        }
        (arrived, lane.counts())
    }

    fn sent(number: u32) -> Duration {
        ms(1) + Duration::from_micros(100) * number
    }

    fn ms(number: u64) -> Duration {
        Duration::from_millis(number)
    }

    #[test]
    fn a_good_link_passes_everything_at_once_and_in_order() {
        let (arrived, counts) = arrivals(1, Impairment::default());
        assert!(arrived.into_iter().eq((0..FRAMES).map(|number| (sent(number), number))));
        assert_eq!(counts, FrameCounts { passed: u64::from(FRAMES), overtaken: 0, lost: 0 });
    }

    #[test]
    fn a_delay_holds_each_frame_for_as_long_and_keeps_the_order() {
        let (arrived, counts) = arrivals(2, Impairment { delay: ms(100), ..Impairment::default() });
        assert!(arrived.into_iter().eq((0..FRAMES).map(|number| (sent(number) + ms(100), number))));
        assert_eq!(counts.overtaken, 0);
    }

    #[test]
    fn about_as_many_are_lost_as_was_said_and_the_same_ones_for_the_same_seed() {
        let one_percent = Impairment { loss_per_mille: 10, ..Impairment::default() };
        let (arrived, counts) = arrivals(3, one_percent);
        assert!((50..200).contains(&counts.lost), "{counts:?}");
        assert_eq!(counts.lost + counts.passed, u64::from(FRAMES));
        assert_eq!(arrivals(3, one_percent), (arrived.clone(), counts));
        assert_ne!(arrivals(4, one_percent).0, arrived);
        let all = Impairment { loss_per_mille: 1000, ..Impairment::default() };
        assert_eq!(arrivals(3, all).1, FrameCounts { lost: u64::from(FRAMES), ..FrameCounts::default() });
    }

    #[test]
    fn jitter_lets_frames_overtake_each_other_within_its_bounds() {
        let (arrived, counts) = arrivals(5, Impairment { delay: ms(20), jitter: ms(5), loss_per_mille: 0 });
        assert_eq!(arrived.len(), usize::try_from(FRAMES).unwrap());
        let held = arrived.iter().map(|(at, number)| *at - sent(*number));
        let (least, most) =
            held.fold((ms(1000), ms(0)), |(least, most), held| (least.min(held), most.max(held)));
        assert!(least >= ms(20) && least < ms(21) && most > ms(24) && most < ms(25), "{least:?} {most:?}");
        assert!(counts.overtaken > u64::from(FRAMES / 4), "{counts:?}");
    }

    #[test]
    fn a_full_lane_loses_what_is_more() {
        let slow = Impairment { delay: ms(1000), ..Impairment::default() };
        let mut lane = Lane::new(6);
        (0..HELD_FRAMES_MAX + 7).for_each(|number| lane.take(number, &slow, ms(0)));
        assert_eq!(lane.counts().lost, 7);
        assert_eq!((lane.arrived(ms(999)), lane.arrived(ms(1000))), (None, Some(0)));
    }
}
