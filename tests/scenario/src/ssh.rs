//! Stock OpenSSH, configured by `way config`.

use crate::cluster::Cluster;
use crate::program::Program;
use std::path::{Path, PathBuf};

/// `ssh`, `scp`, `sftp` and whatever runs `ssh`, as one user through one proxy.
pub struct Ssh {
    base: Program,
    config: PathBuf,
    cluster: String,
}

impl Ssh {
    pub(crate) fn new(cluster: &Cluster, identity: &Path, proxy: usize) -> Self {
        let text = cluster.way(identity, proxy).arg("config").stdout();
        let name = identity.file_stem().unwrap().to_string_lossy();
        let config = cluster.scene.write(&format!("ssh-{name}-{proxy}.config"), text);
        Self { base: cluster.scene.program("ssh"), config, cluster: cluster.auth_file.cluster_name.clone() }
    }

    /// The file that `way config` printed.
    pub fn config(&self) -> &Path {
        &self.config
    }

    /// `NODE.CLUSTER`, as the configuration knows a node.
    pub fn host(&self, node: &str) -> String {
        format!("{node}.{}", self.cluster)
    }

    /// `LOGIN@NODE.CLUSTER`.
    pub fn target(&self, login: &str, node: &str) -> String {
        format!("{login}@{}", self.host(node))
    }

    /// A program of OpenSSH without any configuration.
    pub fn plain(&self, name: &str) -> Program {
        self.base.renamed(name)
    }

    /// A program of OpenSSH with the configuration, never asking anything.
    pub fn program(&self, name: &str) -> Program {
        self.base.renamed(name).arg("-F").arg(&self.config).args(["-o", "BatchMode=yes"])
    }

    /// `ssh OPTIONS root@NODE COMMAND`.
    pub fn run(&self, node: &str, options: &[&str], command: &str) -> Program {
        let program = self.program("ssh").args(options).arg(self.target("root", node));
        if command.is_empty() { program } else { program.arg(command) }
    }
}
