//! A role with everything parsed: what decisions run on.

use crate::Subject;
use crate::denial::DenyKey;
use crate::expression::{Dialect, Expression, ExpressionError, Scope};
use crate::pattern::{Pattern, PatternError, glob_matches, is_regex};
use crate::template::{Template, TemplateError, values};
use std::fmt;
use wayleave_resource::{AdminVerb, LabelSelector, Role, RoleConditions, RoleOptions, Rule, RuleTarget};
use wayleave_vocab::{Labels, Login, RoleName, Wall};

/// A mistake inside a role that only compiling shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RoleError {
    /// The role.
    pub role: RoleName,
    /// The key, such as `spec.allow.logins[0]`.
    pub path: String,
    /// What is wrong.
    pub problem: RoleProblem,
}

/// What is wrong with one text of a role.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RoleProblem {
    /// A glob or regular expression.
    #[error(transparent)]
    Pattern(#[from] PatternError),
    /// A text with braces.
    #[error(transparent)]
    Template(#[from] TemplateError),
    /// An expression.
    #[error(transparent)]
    Expression(#[from] ExpressionError),
    /// A regular expression with braces in it.
    #[error("a regular expression cannot contain {{{{…}}}}: write node_labels_expression with regexp.match")]
    TemplateInRegex,
    /// A login with a wildcard under `allow`.
    #[error("a login under allow names an account: certificates cannot carry a wildcard")]
    WildcardLogin,
    /// A login that no account can have.
    #[error("this is no login: {0}")]
    Login(wayleave_vocab::NameError),
}

impl fmt::Display for RoleError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "role {}, {}: {}", self.role, self.path, self.problem)
    }
}

impl std::error::Error for RoleError {}

/// A role whose patterns, templates and expressions are compiled.
#[derive(Debug, Clone)]
pub struct CompiledRole {
    pub(crate) name: RoleName,
    pub(crate) expires: Option<Wall>,
    pub(crate) options: RoleOptions,
    pub(crate) allow: Conditions,
    pub(crate) deny: Conditions,
}

impl CompiledRole {
    /// Compiles a role. Auth calls this before it stores one.
    ///
    /// # Errors
    /// Every text of the role that does not compile.
    pub fn compile(role: &Role) -> Result<Self, Vec<RoleError>> {
        let mut errors = Vec::new();
        let mut note = |section: &str, found: Vec<(String, RoleProblem)>| {
            errors.extend(found.into_iter().map(|(path, problem)| RoleError {
                role: role.name.clone(),
                path: format!("spec.{section}.{path}"),
                problem,
            }));
        };
        let (allow, found) = Conditions::compile(&role.spec.allow, Section::Allow);
        note("allow", found);
        let (deny, found) = Conditions::compile(&role.spec.deny, Section::Deny);
        note("deny", found);
        if !errors.is_empty() {
            return Err(errors);
        }
        Ok(Self {
            name: role.name.clone(),
            expires: role.metadata.expires,
            options: role.spec.options.clone(),
            allow,
            deny,
        })
    }

    /// The name.
    pub fn name(&self) -> &RoleName {
        &self.name
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Section {
    Allow,
    Deny,
}

/// Compiled conditions of one section.
#[derive(Debug, Clone)]
pub(crate) struct Conditions {
    pub(crate) logins: Vec<LoginEntry>,
    pub(crate) labels: Vec<KeyMatcher>,
    pub(crate) expression: Option<Expression>,
    pub(crate) apps: AppConditions,
    pub(crate) rules: Vec<CompiledRule>,
}

/// Which TCP applications a section is about.
#[derive(Debug, Clone)]
pub(crate) struct AppConditions {
    labels: Vec<KeyMatcher>,
    expression: Option<Expression>,
}

/// One entry of `logins`, with its text for explanations.
#[derive(Debug, Clone)]
pub(crate) struct LoginEntry {
    pub(crate) text: Box<str>,
    pub(crate) matcher: LoginMatcher,
}

#[derive(Debug, Clone)]
pub(crate) enum LoginMatcher {
    Template(Template),
    /// Only under `deny`.
    Pattern(Pattern),
}

/// One key of `node_labels`.
#[derive(Debug, Clone)]
pub(crate) enum KeyMatcher {
    /// `'*': '*'`.
    Every,
    Key {
        key: Box<str>,
        values: Vec<ValueMatcher>,
    },
}

#[derive(Debug, Clone)]
pub(crate) enum ValueMatcher {
    Pattern(Pattern),
    Template(Template),
    /// A template with stars around the braces: the stars are a glob, the value is literal.
    TemplateGlob {
        prefix: Box<str>,
        expression: Box<Expression>,
        suffix: Box<str>,
    },
}

#[derive(Debug, Clone)]
pub(crate) struct CompiledRule {
    pub(crate) targets: Vec<RuleTarget>,
    pub(crate) verbs: Vec<AdminVerb>,
    pub(crate) predicate: Option<Expression>,
}

type Found = Vec<(String, RoleProblem)>;

impl Conditions {
    fn compile(conditions: &RoleConditions, section: Section) -> (Self, Found) {
        let mut found = Found::new();
        let mut logins = Vec::new();
        for (index, text) in conditions.logins.iter().enumerate() {
            match LoginMatcher::compile(text, section) {
                Ok(matcher) => logins.push(LoginEntry { text: text.as_str().into(), matcher }),
                Err(problem) => found.push((format!("logins[{index}]"), problem)),
            }
        }
        let labels = compile_labels(&conditions.node_labels, "node_labels", &mut found);
        let text = conditions.node_labels_expression.as_deref();
        let expression = compile_expression(text, "node_labels_expression", &mut found);
        let text = conditions.app_labels_expression.as_deref();
        let apps = AppConditions {
            labels: compile_labels(&conditions.app_labels, "app_labels", &mut found),
            expression: compile_expression(text, "app_labels_expression", &mut found),
        };
        let mut rules = Vec::new();
        for (index, rule) in conditions.rules.iter().enumerate() {
            match CompiledRule::compile(rule) {
                Ok(rule) => rules.push(rule),
                Err(error) => found.push((format!("rules[{index}].where"), error.into())),
            }
        }
        (Self { logins, labels, expression, apps, rules }, found)
    }

    /// True when nothing is said about nodes.
    pub(crate) fn names_no_nodes(&self) -> bool {
        self.labels.is_empty() && self.expression.is_none()
    }

    /// Allow: labels and expression must both match when both are set, and one of them must be set.
    pub(crate) fn allows_node(&self, scope: &Scope<'_>) -> bool {
        !self.names_no_nodes()
            && (self.labels.is_empty() || self.labels_match(scope))
            && self.expression.as_ref().is_none_or(|expression| expression.holds(scope).unwrap_or(false))
    }

    /// True if every key of `node_labels` matches, and there is a key.
    pub(crate) fn labels_match(&self, scope: &Scope<'_>) -> bool {
        every_key_matches(&self.labels, scope)
    }

    /// Deny: an expression that cannot be answered denies.
    pub(crate) fn expression_denies(&self, scope: &Scope<'_>) -> bool {
        self.expression.as_ref().is_some_and(|expression| expression.holds(scope).unwrap_or(true))
    }

    pub(crate) fn login_matches(&self, login: &str, scope: &Scope<'_>) -> bool {
        self.login_entry(login, scope).is_some()
    }

    /// The first entry that matches.
    pub(crate) fn login_entry(&self, login: &str, scope: &Scope<'_>) -> Option<&LoginEntry> {
        self.logins.iter().find(|entry| entry.matcher.matches(login, scope))
    }
}

impl AppConditions {
    /// Allow: labels and expression must both match when both are set, and one of them must be set.
    pub(crate) fn allow(&self, scope: &Scope<'_>) -> bool {
        (!self.labels.is_empty() || self.expression.is_some())
            && (self.labels.is_empty() || every_key_matches(&self.labels, scope))
            && self.expression.as_ref().is_none_or(|expression| expression.holds(scope).unwrap_or(false))
    }

    /// Deny: labels or expression, either is enough; an expression that cannot be answered denies.
    pub(crate) fn deny(&self, scope: &Scope<'_>) -> Option<DenyKey> {
        if every_key_matches(&self.labels, scope) {
            return Some(DenyKey::AppLabels);
        }
        let denies = |expression: &Expression| expression.holds(scope).unwrap_or(true);
        self.expression.as_ref().is_some_and(denies).then_some(DenyKey::AppLabelsExpression)
    }
}

/// True if every key matches, and there is a key.
fn every_key_matches(keys: &[KeyMatcher], scope: &Scope<'_>) -> bool {
    let Some(labels) = scope.labels else { return false };
    !keys.is_empty() && keys.iter().all(|key| key.matches(labels, scope))
}

fn compile_labels(selector: &LabelSelector, name: &str, found: &mut Found) -> Vec<KeyMatcher> {
    let mut labels = Vec::new();
    for (key, texts) in selector {
        if key == "*" {
            labels.push(KeyMatcher::Every);
            continue;
        }
        let mut values = Vec::new();
        for (index, text) in texts.iter().enumerate() {
            match ValueMatcher::compile(text) {
                Ok(value) => values.push(value),
                Err(problem) => found.push((format!("{name}.{key}[{index}]"), problem)),
            }
        }
        labels.push(KeyMatcher::Key { key: key.as_str().into(), values });
    }
    labels
}

fn compile_expression(text: Option<&str>, name: &str, found: &mut Found) -> Option<Expression> {
    match Expression::parse(text?, Dialect::Labels) {
        Ok(expression) => Some(expression),
        Err(error) => {
            found.push((name.to_owned(), error.into()));
            None
        }
    }
}

impl LoginMatcher {
    fn compile(text: &str, section: Section) -> Result<Self, RoleProblem> {
        let is_pattern = text.contains('*') || is_regex(text);
        if text.contains("{{") || text.contains("}}") {
            if is_regex(text) {
                return Err(RoleProblem::TemplateInRegex);
            }
            return Ok(Self::Template(Template::parse(text)?));
        }
        match section {
            Section::Allow if is_pattern => Err(RoleProblem::WildcardLogin),
            Section::Allow => {
                Login::parse(text).map_err(RoleProblem::Login)?;
                Ok(Self::Template(Template::parse(text)?))
            }
            Section::Deny => Ok(Self::Pattern(Pattern::parse(text)?)),
        }
    }

    pub(crate) fn matches(&self, login: &str, scope: &Scope<'_>) -> bool {
        match self {
            Self::Template(template) => template.yields(login, scope),
            Self::Pattern(pattern) => pattern.matches(login),
        }
    }
}

impl KeyMatcher {
    pub(crate) fn matches(&self, labels: &Labels, scope: &Scope<'_>) -> bool {
        match self {
            Self::Every => true,
            Self::Key { key, values } => {
                labels.get(key).is_some_and(|label| values.iter().any(|value| value.matches(label, scope)))
            }
        }
    }
}

impl ValueMatcher {
    fn compile(text: &str) -> Result<Self, RoleProblem> {
        if !text.contains("{{") && !text.contains("}}") {
            return Ok(Self::Pattern(Pattern::parse(text)?));
        }
        if is_regex(text) {
            return Err(RoleProblem::TemplateInRegex);
        }
        Ok(match Template::parse(text)? {
            Template::Expanded { prefix, expression, suffix }
                if prefix.contains('*') || suffix.contains('*') =>
            {
                Self::TemplateGlob { prefix, expression, suffix }
            }
            template => Self::Template(template),
        })
    }

    fn matches(&self, label: &str, scope: &Scope<'_>) -> bool {
        match self {
            Self::Pattern(pattern) => pattern.matches(label),
            Self::Template(template) => template.yields(label, scope),
            Self::TemplateGlob { prefix, expression, suffix } => {
                values(expression, scope).iter().any(|value| {
                    let before: Vec<&str> = prefix.split('*').collect();
                    let after: Vec<&str> = suffix.split('*').collect();
                    let middle =
                        [*before.last().unwrap_or(&""), value.as_str(), *after.first().unwrap_or(&"")]
                            .concat();
                    let mut parts: Vec<&str> =
                        before.iter().take(before.len().saturating_sub(1)).copied().collect();
                    parts.push(&middle);
                    parts.extend(after.iter().skip(1).copied());
                    glob_matches(&parts, label)
                })
            }
        }
    }
}

impl CompiledRule {
    fn compile(rule: &Rule) -> Result<Self, ExpressionError> {
        let predicate =
            rule.where_.as_deref().map(|text| Expression::parse(text, Dialect::Where)).transpose()?;
        Ok(Self { targets: rule.resources.clone(), verbs: rule.verbs.clone(), predicate })
    }

    /// True if the rule is about this verb and kind, whatever its predicate says. `read` covers `readnosecrets`.
    pub(crate) fn is_about(&self, verb: AdminVerb, target: &RuleTarget) -> bool {
        let verb = self.verbs.iter().any(|own| {
            *own == verb
                || *own == AdminVerb::Any
                || (*own == AdminVerb::Read && verb == AdminVerb::ReadNoSecrets)
        });
        verb && self.targets.iter().any(|own| own == target || *own == RuleTarget::Any)
    }
}

impl<'a> Scope<'a> {
    pub(crate) fn of_node(subject: Subject<'a>, labels: &'a Labels) -> Self {
        Self { subject, labels: Some(labels), resource_name: None, resource_kind: None }
    }

    pub(crate) fn of_user(subject: Subject<'a>) -> Self {
        Self { subject, labels: None, resource_name: None, resource_kind: None }
    }
}
