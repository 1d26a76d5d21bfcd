//! `way get routes`: which proxies hold the tunnels of which agents.

use crate::access::{Access, call};
use crate::failure::Failure;
use crate::output::{Format, table, to_json, to_yaml};
use serde::Serialize;
use wayleave_api::auth::ListRoutesRequest;

const PAGE_SIZE: u32 = 5000;

/// One agent and where it is connected, as programs read it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct RouteView {
    host_id: String,
    /// The node's name; empty for an agent that has registered none.
    name: String,
    proxies: Vec<ProxyView>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct ProxyView {
    host_id: String,
    name: String,
}

/// All routes, in a format.
pub(crate) async fn get(access: &Access, format: Format) -> Result<String, Failure> {
    let mut admin = access.admin()?;
    let (mut routes, mut page_token) = (Vec::new(), String::new());
    loop {
        let request = ListRoutesRequest { page_size: PAGE_SIZE, page_token: page_token.clone() };
        let page = call(admin.list_routes(request)).await?;
        routes.extend(page.routes.into_iter().map(|route| {
            RouteView {
                host_id: route.host_id,
                name: route.name,
                proxies: route
                    .proxies
                    .into_iter()
                    .map(|proxy| ProxyView { host_id: proxy.host_id, name: proxy.name })
                    .collect(),
            }
        }));
        if page.next_page_token.is_empty() || page.next_page_token == page_token {
            return render(&routes, format);
        }
        page_token = page.next_page_token;
    }
}

fn render(routes: &[RouteView], format: Format) -> Result<String, Failure> {
    match format {
        Format::Json => to_json(&routes),
        Format::Yaml => to_yaml(&routes),
        Format::Names => Ok(routes.iter().map(|route| format!("{}\n", route.host_id)).collect()),
        Format::Text if routes.is_empty() => {
            Ok("No routes: no agent is connected to any proxy.\n".to_owned())
        }
        Format::Text => {
            let rows: Vec<Vec<String>> = routes
                .iter()
                .map(|route| {
                    let proxies: Vec<&str> = route.proxies.iter().map(|proxy| proxy.name.as_str()).collect();
                    vec![route.name.clone(), route.host_id.clone(), proxies.join(",")]
                })
                .collect();
            Ok(table(&["Node", "Host ID", "Proxies"], &rows))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routes_are_shown_to_people_and_programs() {
        let proxy = |name: &str| ProxyView { host_id: format!("id-{name}"), name: name.to_owned() };
        let route = RouteView {
            host_id: "id-1".to_owned(),
            name: "web-1".to_owned(),
            proxies: vec![proxy("proxy-1"), proxy("proxy-2")],
        };
        let text = render(std::slice::from_ref(&route), Format::Text).unwrap();
        assert!(text.ends_with("web-1 id-1    proxy-1,proxy-2\n"), "{text}");
        let json: serde_json::Value = serde_json::from_str(&render(&[route], Format::Json).unwrap()).unwrap();
        assert_eq!(json[0]["proxies"][1]["name"], "proxy-2");
        assert!(render(&[], Format::Text).unwrap().starts_with("No routes"));
    }
}
