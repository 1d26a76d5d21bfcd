//! Where files are: here, or on a node.

use crate::dial::Destination;
use crate::failure::Failure;
use std::path::PathBuf;
use std::str::FromStr;

/// One argument of `way scp`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Place {
    /// A path here.
    Local(PathBuf),
    /// A path on a node.
    Remote {
        /// The node.
        destination: Destination,
        /// The path, relative to the home directory unless it begins with a slash.
        path: String,
    },
}

/// What is to be done.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Plan {
    /// From here to a node.
    Upload { sources: Vec<PathBuf>, destination: Destination, target: String },
    /// From a node to here.
    Download { destination: Destination, sources: Vec<String>, target: PathBuf },
}

impl FromStr for Place {
    type Err = String;

    /// A colon before any slash makes it a node, as in scp.
    fn from_str(text: &str) -> Result<Self, String> {
        let (head, path) = match text.split_once(':') {
            Some((head, path)) if !head.is_empty() && !head.contains('/') => (head, path),
            _ => return Ok(Self::Local(PathBuf::from(text))),
        };
        Ok(Self::Remote { destination: head.parse()?, path: home_relative(path).to_owned() })
    }
}

/// A path for SFTP, which starts at the home directory by itself.
fn home_relative(path: &str) -> &str {
    match path.strip_prefix("~/").unwrap_or(path) {
        "" | "~" => ".",
        path => path,
    }
}

impl Plan {
    /// Sources and, at last, the target.
    pub(crate) fn new(mut places: Vec<Place>) -> Result<Self, Failure> {
        let target = places.pop().ok_or_else(|| Failure::usage("where to?"))?;
        let both = || {
            Failure::usage("files are copied between this machine and one node")
                .hint("copy here first, then to the other node")
        };
        match target {
            Place::Remote { destination, path } => {
                let sources = places
                    .into_iter()
                    .map(|place| match place {
                        Place::Local(path) => Ok(path),
                        Place::Remote { .. } => Err(both()),
                    })
                    .collect::<Result<_, _>>()?;
                Ok(Self::Upload { sources, destination, target: path })
            }
            Place::Local(target) => {
                let mut node = None;
                let mut sources = Vec::new();
                for place in places {
                    match place {
                        Place::Remote { destination, path }
                            if node.is_none() || node.as_ref() == Some(&destination) =>
                        {
                            node = Some(destination);
                            sources.push(path);
                        }
                        Place::Remote { .. } => return Err(both()),
                        Place::Local(path) => {
                            return Err(Failure::usage(format!(
                                "{} and the target are both here",
                                path.display()
                            ))
                            .hint("name a node with a colon: [LOGIN@]NODE:PATH"));
                        }
                    }
                }
                let destination = node.ok_or_else(both)?;
                Ok(Self::Download { destination, sources, target })
            }
        }
    }

    /// The node.
    pub(crate) fn destination(&self) -> &Destination {
        match self {
            Self::Upload { destination, .. } | Self::Download { destination, .. } => destination,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(line: &str) -> Result<Plan, crate::failure::Exit> {
        Plan::new(line.split(' ').map(|word| word.parse().unwrap()).collect()).map_err(|f| f.exit)
    }

    #[test]
    fn a_colon_before_a_slash_is_a_node() {
        let remote = |text: &str| match text.parse::<Place>() {
            Ok(Place::Remote { path, .. }) => Some(path),
            _ => None,
        };
        assert_eq!(remote("root@web-1:/etc/x"), Some("/etc/x".to_owned()));
        assert_eq!(remote("web-1:"), Some(".".to_owned()));
        assert_eq!(remote("web-1:~/a:b"), Some("a:b".to_owned()));
        assert_eq!(remote("./a:b"), None);
        assert_eq!(remote("a"), None);
        assert!("-x:y".parse::<Place>().is_err());
    }

    #[test]
    fn files_go_one_way_between_here_and_one_node() {
        assert!(
            matches!(plan("a b root@web-1:/tmp"), Ok(Plan::Upload { sources, .. }) if sources.len() == 2)
        );
        assert!(
            matches!(plan("web-1:a web-1:b ."), Ok(Plan::Download { sources, .. }) if sources.len() == 2)
        );
        for bad in ["a b", "web-1:a web-2:b", "web-1:a web-2:b .", "a web-1:b .", "a web-1:b web-1:c"] {
            assert_eq!(plan(bad), Err(crate::failure::Exit::Usage), "{bad}");
        }
    }
}
