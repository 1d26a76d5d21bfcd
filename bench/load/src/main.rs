//! `wayleave-bench`: runs Wayleave and its peers side by side on this machine and writes down how they compare.
//!
//! Every row is one of BUDGETS: contenders take turns (A B A B), each figure is the median of at least five runs, and
//! a goal that is not reached stays in the file as lost. Nothing here asserts a time: this is no test, and its exit
//! code tells only whether measuring worked. `rows/` holds what is measured, `cluster` and `openssh` what runs,
//! `report` what is written.

mod account;
mod cluster;
mod daemon;
mod fleet;
mod loader;
mod machine;
mod openssh;
mod options;
mod place;
mod plot;
mod proc_fs;
mod rathole;
mod report;
mod rows;
mod sample;
mod store;
mod watched;

use options::Options;
use place::Place;
use report::RowReport;
use std::process::ExitCode;

fn main() -> ExitCode {
    let options = match Options::parse(std::env::args().skip(1)) {
        Ok(Some(options)) => options,
        Ok(None) => {
            eprint!("{}", options::USAGE);
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            eprintln!("{error:#}\n\n{}", options::USAGE);
            return ExitCode::from(2);
        }
    };
    match run(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Measures row by row. A row that cannot be measured does not keep the others from it.
fn run(options: &Options) -> anyhow::Result<()> {
    let mut place = Place::new(options)?;
    let mut failed = Vec::new();
    for row in &options.rows {
        eprintln!("\nrow {}: {}", row.number(), row.title());
        let load_before = machine::load();
        match row.measure(&mut place) {
            Ok(mut findings) => {
                findings.notes.push(place.account.note());
                let report = RowReport::new(*row, options, findings, load_before)?;
                report.show();
                report.write(&options.out)?;
            }
            Err(error) => {
                eprintln!("  cannot be measured: {error:#}");
                eprintln!("  configurations and logs are kept in {}", place.keep().display());
                failed.push(row.number().to_string());
            }
        }
    }
    report::write_table(&options.out)?;
    if failed.is_empty() { Ok(()) } else { anyhow::bail!("not measured: rows {}", failed.join(", ")) }
}
