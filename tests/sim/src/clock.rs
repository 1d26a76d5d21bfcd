//! Each host has a clock of its own: another origin, and a rate that is off by up to a hundredth.

use crate::random::Random;
use std::time::Duration;
use wayleave_vocab::Mono;

#[derive(Debug, Clone, Copy)]
pub(crate) struct Clock {
    offset: Duration,
    rate_ppm: u64,
}

impl Clock {
    pub(crate) fn draw(random: &mut Random) -> Self {
        Self { offset: random.between_ms(0, 10_000_000), rate_ppm: 990_000 + random.number() % 20_000 }
    }

    /// What the host reads when this much time has passed in the world.
    pub(crate) fn read(self, world: Mono) -> Mono {
        let micros = world.since_origin().as_micros() as u64;
        Mono::from_origin(self.offset + Duration::from_micros(micros * self.rate_ppm / 1_000_000))
    }

    /// When the host will read this: not earlier, hardly later.
    pub(crate) fn when(self, local: Mono) -> Mono {
        let micros = local.since_origin().saturating_sub(self.offset).as_micros() as u64;
        Mono::from_origin(Duration::from_micros((micros * 1_000_000).div_ceil(self.rate_ppm) + 1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_alarm_never_rings_early() {
        let mut random = Random::new(1);
        for _ in 0..1000 {
            let clock = Clock::draw(&mut random);
            let local = clock.read(Mono::ZERO).after(random.between_ms(0, 100_000));
            let rings = clock.read(clock.when(local));
            assert!(rings >= local && rings.since(local) < Duration::from_micros(10));
        }
    }
}
