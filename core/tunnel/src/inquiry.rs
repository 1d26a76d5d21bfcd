//! When Auth is asked for the cluster's proxies: at the start, from time to time, in doubt, and when no proxy is reached
//! for a while.
//!
//! What proxies tell is a reason to ask, no more. Questions are bounded however often somebody raises a doubt. Agents that
//! lose their proxies together and come back to them ask nothing.

use crate::backoff::Backoff;
use crate::config::Config;
use crate::jitter::Jitter;
use std::time::Duration;
use wayleave_vocab::Mono;

#[derive(Debug)]
enum State {
    Waiting { at: Mono },
    Asked { until: Mono },
}

#[derive(Debug)]
pub(crate) struct Inquiry {
    state: State,
    has_answer: bool,
    /// Before the first answer.
    backoff: Backoff,
    /// Something speaks against the last answer.
    is_doubted: bool,
    /// No proxy of the last answer is reached: Auth is asked then.
    lost_until: Option<Mono>,
    /// The least time between two questions for doubt; grows while doubts prove to be unfounded.
    pause: Duration,
    not_before: Mono,
}

impl Inquiry {
    pub(crate) fn new(config: &Config, now: Mono) -> Self {
        Self {
            state: State::Waiting { at: now },
            has_answer: false,
            backoff: Backoff::default(),
            is_doubted: false,
            lost_until: None,
            pause: config.doubt_wait,
            not_before: now,
        }
    }

    pub(crate) fn poll_timeout(&self) -> Mono {
        match self.state {
            State::Waiting { at } => self.lost_until.map_or(at, |lost| lost.min(at)),
            State::Asked { until } => until,
        }
    }

    /// Gives the deadline of a question that is due now.
    pub(crate) fn ask(&mut self, config: &Config, now: Mono) -> Option<Mono> {
        match self.state {
            State::Waiting { .. } if self.poll_timeout() <= now => {
                let until = now.after(config.ask_deadline);
                self.state = State::Asked { until };
                self.is_doubted = false;
                self.lost_until = None;
                Some(until)
            }
            State::Waiting { .. } | State::Asked { .. } => None,
        }
    }

    /// The deadline of the last question has passed.
    pub(crate) fn is_late(&self, now: Mono) -> bool {
        matches!(self.state, State::Asked { until } if until <= now)
    }

    pub(crate) fn answered(&mut self, is_news: bool, config: &Config, jitter: &mut Jitter, now: Mono) {
        self.pause = if is_news { config.doubt_wait } else { self.longer(config) };
        self.has_answer = true;
        self.backoff.forget();
        self.not_before = now.after(self.pause);
        let interval = config.ask_interval;
        self.state = State::Waiting { at: now.after(jitter.between(interval / 2, interval)) };
        if std::mem::take(&mut self.is_doubted) {
            self.doubt(config, jitter, now);
        }
    }

    pub(crate) fn failed(&mut self, config: &Config, jitter: &mut Jitter, now: Mono) {
        let State::Asked { .. } = self.state else { return };
        let at = if self.has_answer {
            self.pause = self.longer(config);
            now.after(jitter.between(self.pause / 2, self.pause))
        } else {
            self.backoff.fail(config, jitter, now);
            self.backoff.until()
        };
        self.state = State::Waiting { at };
    }

    /// Agents that come to doubt together ask spread over a while.
    pub(crate) fn doubt(&mut self, config: &Config, jitter: &mut Jitter, now: Mono) {
        if !self.has_answer || std::mem::replace(&mut self.is_doubted, true) {
            return;
        }
        if let State::Waiting { at } = &mut self.state {
            let soon = now.after(jitter.between(Duration::ZERO, config.doubt_wait));
            *at = (*at).min(soon.max(self.not_before));
        }
    }

    /// No proxy is reached. They are tried on, and Auth is asked when none comes back.
    pub(crate) fn lost(&mut self, config: &Config, jitter: &mut Jitter, now: Mono) {
        if self.has_answer && self.lost_until.is_none() {
            let at = now.after(jitter.between(config.lost_wait, config.lost_wait * 2));
            self.lost_until = Some(at.max(self.not_before));
        }
    }

    /// A proxy that the last answer names is reached again.
    pub(crate) fn found(&mut self) {
        self.lost_until = None;
    }

    fn longer(&self, config: &Config) -> Duration {
        self.pause.saturating_mul(2).min(config.doubt_wait_max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Steps to the next question and gives how long that took.
    fn next(inquiry: &mut Inquiry, config: &Config, now: &mut Mono) -> Duration {
        let before = *now;
        *now = inquiry.poll_timeout().max(*now);
        assert!(inquiry.ask(config, *now).is_some());
        now.since(before)
    }

    #[test]
    fn a_founded_doubt_is_answered_soon_and_a_quiet_cluster_is_asked_seldom() {
        let (config, mut jitter, mut now) = (Config::default(), Jitter::new(1), Mono::ZERO);
        let mut inquiry = Inquiry::new(&config, now);
        assert_eq!(next(&mut inquiry, &config, &mut now), Duration::ZERO);
        inquiry.answered(true, &config, &mut jitter, now);
        for _ in 0..20 {
            inquiry.doubt(&config, &mut jitter, now);
            assert!(next(&mut inquiry, &config, &mut now) <= config.doubt_wait);
            inquiry.answered(true, &config, &mut jitter, now);
        }
        assert!(next(&mut inquiry, &config, &mut now) >= config.ask_interval / 2);
    }

    #[test]
    fn who_loses_all_proxies_asks_only_when_none_comes_back() {
        let (config, mut jitter, mut now) = (Config::default(), Jitter::new(3), Mono::ZERO);
        let mut inquiry = Inquiry::new(&config, now);
        inquiry.lost(&config, &mut jitter, now);
        assert_eq!(next(&mut inquiry, &config, &mut now), Duration::ZERO);
        inquiry.answered(true, &config, &mut jitter, now);
        inquiry.lost(&config, &mut jitter, now);
        let wait = next(&mut inquiry, &config, &mut now);
        assert!((config.lost_wait..=config.lost_wait * 2).contains(&wait));
        inquiry.answered(false, &config, &mut jitter, now);
        inquiry.lost(&config, &mut jitter, now);
        inquiry.found();
        assert!(next(&mut inquiry, &config, &mut now) >= config.ask_interval / 2);
    }

    #[test]
    fn o_doubts_without_end_and_without_ground_cost_a_bounded_number_of_questions() {
        let (config, mut jitter, mut now) = (Config::default(), Jitter::new(2), Mono::ZERO);
        let mut inquiry = Inquiry::new(&config, now);
        let mut questions = 0;
        while now < Mono::ZERO.after(Duration::from_secs(3600)) {
            inquiry.doubt(&config, &mut jitter, now);
            if inquiry.ask(&config, now).is_some() {
                questions += 1;
                inquiry.doubt(&config, &mut jitter, now);
                inquiry.answered(false, &config, &mut jitter, now);
            }
            now = now.after(Duration::from_millis(100));
        }
        assert!((10..50).contains(&questions), "{questions} questions in an hour");
    }
}
