//! A runner that honours a filter, and what the cases share beside the world.

use std::time::Duration;

/// Longer than anything here takes; a test that waits so long has failed.
pub(crate) const PATIENCE: Duration = Duration::from_secs(90);

/// One test.
pub(crate) type Case = (&'static str, fn());

/// Runs the cases whose name contains the first plain argument, like the standard harness.
pub(crate) fn run(cases: &[Case]) {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let filter = arguments.iter().find(|argument| !argument.starts_with('-'));
    let chosen: Vec<_> =
        cases.iter().filter(|(name, _)| filter.is_none_or(|filter| name.contains(filter.as_str()))).collect();
    if arguments.iter().any(|argument| argument == "--list") {
        chosen.iter().for_each(|(name, _)| println!("{name}: test"));
        return;
    }
    let failed: Vec<_> =
        chosen.iter().filter(|(name, case)| !passes(name, *case)).map(|(name, _)| *name).collect();
    println!("\n{} passed, {} failed: {failed:?}", chosen.len() - failed.len(), failed.len());
    if !failed.is_empty() {
        std::process::exit(101);
    }
}

fn passes(name: &str, case: fn()) -> bool {
    let passed = std::panic::catch_unwind(case).is_ok();
    println!("test {name} ... {}", if passed { "ok" } else { "FAILED" });
    passed
}

/// Names the functions of a module as cases.
macro_rules! cases {
    ($($name:ident),* $(,)?) => {
        pub(crate) const CASES: &[crate::Case] = &[$((stringify!($name), $name as fn())),*];
    };
}
pub(crate) use cases;

/// Runs a future to its end on a runtime of its own.
pub(crate) fn block_on<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let output =
        runtime.block_on(async { tokio::time::timeout(PATIENCE, future).await.expect("within patience") });
    runtime.shutdown_timeout(Duration::from_secs(5));
    output
}

/// Waits until something is so.
pub(crate) async fn wait_until(mut condition: impl FnMut() -> bool) {
    while !condition() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
