//! `way get | create | edit | rm`: resources as files.

use crate::access::{Access, call};
use crate::cli::GlobalArgs;
use crate::explain;
use crate::failure::{Exit, Failure};
use crate::moment;
use crate::output::{Format, note, print, table, to_json};
use crate::routes;
use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::Command;
use std::str::FromStr;
use wayleave_api::auth::{ListResourcesRequest, ResourceRef, ResourceWrite};
use wayleave_resource::{Kind, Resource};
use wayleave_vocab::{ResourceName, printable};

const PAGE_SIZE: u32 = 1000;
/// Longest file read, in bytes.
const FILE_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// Show resources
///
/// way get roles                      all roles, as YAML that `way create` reads
/// way get role/access --format json  one of them, as a JSON list
/// way get nodes,locks --format text  tables
/// way get routes                     which proxies hold the tunnels of which agents
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct GetArgs {
    /// What: KIND or KIND/NAME, several with commas.
    #[arg(value_name = "KIND[/NAME]", value_delimiter = ',', required = true)]
    selectors: Vec<Shown>,
}

/// What is shown: resources, or what the cluster knows beside them.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Shown {
    Resources(Selector),
    /// Which proxies hold the tunnels of which agents.
    Routes,
}

impl FromStr for Shown {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "routes" | "route" => Ok(Self::Routes),
            _ => text.parse().map(Self::Resources),
        }
    }
}

/// Create resources from a YAML or JSON file
///
/// way create role.yaml               fails if it exists
/// way create -f role.yaml            creates or replaces
/// cat role.yaml | way create -f -    from standard input
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct CreateArgs {
    /// The file; - for standard input.
    #[arg(value_name = "FILE", default_value = "-")]
    file: PathBuf,
    /// Replace what exists.
    #[arg(short, long)]
    force: bool,
    /// Only tell who would gain and lose what by these roles and users.
    #[arg(long)]
    dry_run: bool,
}

/// Change one resource in $WAY_EDITOR, $VISUAL, $EDITOR or vi
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct EditArgs {
    /// Which: KIND/NAME.
    #[arg(value_name = "KIND/NAME")]
    selector: Selector,
}

/// Remove resources
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct RmArgs {
    /// Which: KIND/NAME, several with commas or blanks.
    #[arg(value_name = "KIND/NAME", value_delimiter = ',', required = true)]
    selectors: Vec<Selector>,
}

/// `kind` or `kind/name`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Selector {
    kind: Kind,
    name: Option<ResourceName>,
}

impl FromStr for Selector {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (kind, name) = match text.split_once('/') {
            Some((kind, name)) => (kind, Some(ResourceName::parse(name).map_err(|e| e.to_string())?)),
            None => (text, None),
        };
        Ok(Self { kind: kind.parse().map_err(|e: wayleave_resource::ParseKindError| e.to_string())?, name })
    }
}

impl Selector {
    /// The name, which kinds with one resource need not be given.
    fn require_name(&self) -> Result<String, Failure> {
        self.name
            .as_ref()
            .map(ToString::to_string)
            .or_else(|| self.kind.only_name().map(str::to_owned))
            .ok_or_else(|| {
                Failure::usage(format!("which {}?", self.kind)).hint(format!("write {}/NAME", self.kind))
            })
    }
}

pub(crate) async fn get(args: &GetArgs, global: &GlobalArgs) -> Result<Exit, Failure> {
    let access = Access::find(global)?;
    if args.selectors.contains(&Shown::Routes) {
        if args.selectors.len() > 1 {
            return Err(Failure::usage("routes are no resources: they are shown alone"));
        }
        print(&routes::get(&access, global.format.unwrap_or_default()).await?)?;
        return Ok(Exit::Done);
    }
    let mut found = Vec::new();
    for shown in &args.selectors {
        let Shown::Resources(selector) = shown else { continue };
        match &selector.name {
            Some(name) => found.push(one(&access, selector.kind, name.as_str()).await?),
            None => found.extend(list(&access, selector.kind).await?),
        }
    }
    print(&render(&found, global.format.unwrap_or(Format::Yaml))?)?;
    Ok(Exit::Done)
}

/// One resource.
pub(crate) async fn one(access: &Access, kind: Kind, name: &str) -> Result<Resource, Failure> {
    let wanted = ResourceRef { kind: kind.to_string(), name: name.to_owned() };
    read(&call(access.admin()?.get_resource(wanted)).await?.json)
}

/// All resources of a kind that the caller may see.
pub(crate) async fn list(access: &Access, kind: Kind) -> Result<Vec<Resource>, Failure> {
    let mut admin = access.admin()?;
    let mut resources = Vec::new();
    let mut page_token = String::new();
    loop {
        let request = ListResourcesRequest {
            kind: kind.to_string(),
            page_size: PAGE_SIZE,
            page_token: page_token.clone(),
        };
        let page = call(admin.list_resources(request)).await?;
        for json in &page.json {
            resources.push(read(json)?);
        }
        if page.next_page_token.is_empty() || page.next_page_token == page_token {
            return Ok(resources);
        }
        page_token = page.next_page_token;
    }
}

/// Creates a resource, or replaces it.
pub(crate) async fn put(access: &Access, resource: &Resource, replace: bool) -> Result<Resource, Failure> {
    let write = ResourceWrite { json: resource.to_json() };
    let mut admin = access.admin()?;
    let answer = if replace {
        call(admin.upsert_resource(write)).await?
    } else {
        call(admin.create_resource(write)).await?
    };
    read(&answer.json)
}

/// Removes a resource.
pub(crate) async fn delete(access: &Access, kind: Kind, name: &str) -> Result<(), Failure> {
    let wanted = ResourceRef { kind: kind.to_string(), name: name.to_owned() };
    call(access.admin()?.delete_resource(wanted)).await.map(|_| ())
}

fn read(json: &str) -> Result<Resource, Failure> {
    Resource::parse_json(json).map_err(|e| {
        Failure::failed(format!("the Auth Service sent a resource that this release cannot read: {e}"))
            .hint("compare `way version`: the cluster may be newer")
    })
}

fn render(resources: &[Resource], format: Format) -> Result<String, Failure> {
    match format {
        Format::Json => to_json(&resources),
        Format::Yaml => {
            resources.iter().map(yaml).collect::<Result<Vec<_>, _>>().map(|all| all.join("---\n"))
        }
        Format::Names => Ok(resources
            .iter()
            .map(|resource| format!("{}/{}\n", resource.kind(), resource.name()))
            .collect()),
        Format::Text => {
            let rows: Vec<Vec<String>> = resources.iter().map(row).collect();
            Ok(table(&["Kind", "Name", "Labels", "Expires", "Description"], &rows))
        }
    }
}

/// As people write it; with what would drive a terminal in it, as JSON, in which that can be written out.
fn yaml(resource: &Resource) -> Result<String, Failure> {
    let text = resource.to_yaml();
    if printable(&text) == text { Ok(text) } else { to_json(resource) }
}

fn row(resource: &Resource) -> Vec<String> {
    let metadata = resource.metadata();
    vec![
        resource.kind().to_string(),
        resource.name().to_string(),
        metadata.labels.to_string(),
        metadata.expires.map_or_else(String::new, moment::rfc3339),
        match resource {
            Resource::Proxy(proxy) if !proxy.status.is_empty() => proxy.status.problems.join("; "),
            _ => metadata.description.clone().unwrap_or_default(),
        },
    ]
}

pub(crate) async fn create(args: &CreateArgs, global: &GlobalArgs) -> Result<Exit, Failure> {
    let text = read_file(&args.file)?;
    let resources = parse(&text)?;
    let access = Access::find(global)?;
    if args.dry_run {
        return explain::preview(&access, &resources, global).await;
    }
    for resource in &resources {
        let done = put(&access, resource, args.force).await?;
        let verb = if args.force { "written" } else { "created" };
        note(&format!("{} {} has been {verb}", done.kind(), done.name()));
    }
    Ok(Exit::Done)
}

fn parse(text: &str) -> Result<Vec<Resource>, Failure> {
    Resource::parse_yaml(text).map_err(|e| {
        Failure::failed(e.to_string())
            .hint("nothing was changed; `way get` shows what such resources look like")
    })
}

fn read_file(path: &PathBuf) -> Result<String, Failure> {
    let mut text = String::new();
    let result = if path.as_os_str() == "-" {
        std::io::stdin().lock().take(FILE_BYTES_MAX + 1).read_to_string(&mut text)
    } else {
        std::fs::File::open(path).and_then(|file| file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text))
    };
    let read = result.map_err(|e| Failure::failed(format!("cannot read {}: {e}", path.display())))?;
    if read as u64 > FILE_BYTES_MAX {
        return Err(Failure::failed(format!("{} is longer than {FILE_BYTES_MAX} bytes", path.display())));
    }
    Ok(text)
}

pub(crate) async fn edit(args: &EditArgs, global: &GlobalArgs) -> Result<Exit, Failure> {
    let access = Access::find(global)?;
    let before = one(&access, args.selector.kind, &args.selector.require_name()?).await?.to_yaml();
    let mut file = tempfile::Builder::new()
        .prefix("way-edit-")
        .suffix(".yaml")
        .tempfile()
        .map_err(Failure::doing("cannot make a file to edit"))?;
    file.write_all(before.as_bytes()).map_err(Failure::doing("cannot write the file to edit"))?;
    run_editor(&file.path().to_path_buf())?;
    let after = read_file(&file.path().to_path_buf())?;
    if after == before {
        note("nothing was changed");
        return Ok(Exit::Done);
    }
    let changed = async {
        let resources = parse(&after)?;
        for resource in &resources {
            put(&access, resource, true).await?;
        }
        Ok::<_, Failure>(resources)
    };
    match changed.await {
        Ok(resources) => {
            for resource in resources {
                note(&format!("{} {} has been written", resource.kind(), resource.name()));
            }
            Ok(Exit::Done)
        }
        Err(failure) => {
            // What was typed is not lost.
            let kept =
                file.into_temp_path().keep().map(|path| path.display().to_string()).unwrap_or_default();
            Err(failure.hint(format!("your text is in {kept}: correct it and use `way create -f {kept}`")))
        }
    }
}

fn run_editor(path: &PathBuf) -> Result<(), Failure> {
    let editor = ["WAY_EDITOR", "VISUAL", "EDITOR"]
        .into_iter()
        .find_map(|name| std::env::var(name).ok().filter(|value| !value.trim().is_empty()))
        .unwrap_or_else(|| "vi".to_owned());
    let mut words = editor.split_whitespace();
    let program = words.next().unwrap_or("vi");
    let status = Command::new(program).args(words).arg(path).status().map_err(|e| {
        Failure::failed(format!("cannot start the editor {program}: {e}")).hint("set WAY_EDITOR or EDITOR")
    })?;
    if status.success() { Ok(()) } else { Err(Failure::failed("the editor failed; nothing was changed")) }
}

pub(crate) async fn rm(args: &RmArgs, global: &GlobalArgs) -> Result<Exit, Failure> {
    let names: Vec<(Kind, String)> = args
        .selectors
        .iter()
        .map(|selector| match &selector.name {
            // What exists once is reset by `create -f`, not removed by a slip.
            None => Err(Failure::usage(format!("which {}?", selector.kind))
                .hint(format!("write {}/NAME", selector.kind))),
            Some(name) => Ok((selector.kind, name.to_string())),
        })
        .collect::<Result<_, _>>()?;
    let access = Access::find(global)?;
    for (kind, name) in names {
        delete(&access, kind, &name).await?;
        note(&format!("{kind} {name} has been removed"));
    }
    Ok(Exit::Done)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROLE: &str = "kind: role\nversion: v7\nmetadata:\n  name: dev\nspec:\n  allow:\n    logins: [ubuntu]\n    node_labels: {env: dev}\n";

    #[test]
    fn selectors_are_read_as_people_type_them() {
        let check = |text: &str, expected: Option<(Kind, Option<&str>)>| {
            let got = text.parse::<Selector>().ok().map(|s| (s.kind, s.name.map(|n| n.to_string())));
            assert_eq!(got, expected.map(|(k, n)| (k, n.map(str::to_owned))), "{text}");
        };
        check("roles", Some((Kind::Role, None)));
        check("role/access", Some((Kind::Role, Some("access"))));
        check("cap", Some((Kind::ClusterAuthPreference, None)));
        check("role/", None);
        check("rolls", None);
        check("role/../x", None);
        assert_eq!("cap".parse::<Selector>().unwrap().require_name().unwrap(), "cluster-auth-preference");
        assert_eq!("role".parse::<Selector>().unwrap().require_name().unwrap_err().exit, Exit::Usage);
    }

    #[test]
    fn what_get_prints_create_reads() {
        let roles = parse(ROLE).unwrap();
        let two = [roles.clone(), roles].concat();
        let yaml = render(&two, Format::Yaml).unwrap();
        assert_eq!(parse(&yaml).unwrap(), two);
        let json: serde_json::Value = serde_json::from_str(&render(&two, Format::Json).unwrap()).unwrap();
        assert_eq!(json[1]["metadata"]["name"], "dev");
        assert!(render(&two, Format::Text).unwrap().contains("role dev"));
        assert_eq!(render(&two, Format::Names).unwrap(), "role/dev\nrole/dev\n");
    }

    #[test]
    fn every_mistake_of_a_file_is_told() {
        let failure = parse("kind: role\nversion: v9\nmetadata: {}\nspec: {alow: {}}\n").unwrap_err();
        assert!(failure.message.lines().count() >= 3, "{failure}");
    }
}
