//! auth enable, disable, status; user; role.

use clap::{Args, Subcommand};
use client::{Error, EtcdError, Keys, authpb::permission::Type};

use crate::{
    Context,
    failure::{self, Failure},
    password,
    print::{
        auth::{Done, OPEN_END, Role as RoleShown, User as UserShown},
        print_line,
    },
};

#[derive(Subcommand)]
pub enum Auth {
    /// From now on requests need a user who may make them.
    Enable {
        #[arg(hide = true)]
        args: Vec<String>,
    },
    /// From now on everybody may do everything.
    Disable {
        #[arg(hide = true)]
        args: Vec<String>,
    },
    /// Print whether authentication is on.
    Status {
        #[arg(hide = true)]
        args: Vec<String>,
    },
}

impl Auth {
    pub async fn run(self, context: &Context) -> anyhow::Result<()> {
        match self {
            Auth::Enable { args } => {
                no_arguments("auth enable", &args)?;
                enable(context).await?;
                print_line("Authentication Enabled")
            }
            Auth::Disable { args } => {
                no_arguments("auth disable", &args)?;
                context.client.auth_disable().await?;
                print_line("Authentication Disabled")
            }
            Auth::Status { args } => {
                no_arguments("auth status", &args)?;
                context.print(&context.client.auth_status().await?)
            }
        }
    }
}

fn no_arguments(command: &str, args: &[String]) -> Result<(), Failure> {
    match args {
        [] => Ok(()),
        _ => Err(failure::bad_arguments(format!("{command} command does not accept any arguments"))),
    }
}

/// Gives the user root the role root where that is all that is missing.
async fn enable(context: &Context) -> Result<(), Error> {
    let client = &context.client;
    match client.auth_enable().await {
        Err(Error::Etcd(EtcdError::RootRoleNotExist)) => {
            client.role_add("root").await?;
            client.user_grant_role("root", "root").await?;
            client.auth_enable().await.map(drop)
        }
        answer => answer.map(drop),
    }
}

#[derive(Subcommand)]
pub enum User {
    /// Add a user.
    Add(AddUser),
    /// Delete a user.
    #[command(override_usage = "pintlectl user delete <NAME>")]
    Delete {
        #[arg(value_name = "NAME")]
        args: Vec<String>,
    },
    /// Print the roles of a user.
    #[command(override_usage = "pintlectl user get [OPTIONS] <NAME>")]
    Get {
        #[arg(value_name = "NAME")]
        args: Vec<String>,
        /// And what the roles may do.
        #[arg(long)]
        detail: bool,
    },
    /// Print all users.
    List {
        #[arg(hide = true)]
        args: Vec<String>,
    },
    /// Give a user another password.
    #[command(override_usage = "pintlectl user passwd [OPTIONS] <NAME>")]
    Passwd {
        #[arg(value_name = "NAME")]
        args: Vec<String>,
        /// Ask for it on the terminal; else it is read from standard input.
        #[arg(long, action = clap::ArgAction::SetFalse)]
        interactive: bool,
    },
    /// Give a user a role.
    #[command(override_usage = "pintlectl user grant-role <USER> <ROLE>")]
    GrantRole {
        #[arg(value_name = "USER> <ROLE")]
        args: Vec<String>,
    },
    /// Take a role from a user.
    #[command(override_usage = "pintlectl user revoke-role <USER> <ROLE>")]
    RevokeRole {
        #[arg(value_name = "USER> <ROLE")]
        args: Vec<String>,
    },
}

#[derive(Args)]
#[command(override_usage = "pintlectl user add [OPTIONS] <NAME[:PASSWORD]>")]
pub struct AddUser {
    #[arg(value_name = "NAME[:PASSWORD]")]
    args: Vec<String>,
    /// Ask for the password on the terminal; else it is read from standard input.
    #[arg(long, action = clap::ArgAction::SetFalse)]
    interactive: bool,
    /// The password.
    #[arg(long, value_name = "PASSWORD", default_value = "", hide_default_value = true)]
    new_user_password: String,
    /// Without a password: the user shows a certificate with this common name.
    #[arg(long)]
    no_password: bool,
}

fn one<'a>(args: &'a [String], complaint: &str) -> Result<&'a str, Failure> {
    match args {
        [one] => Ok(one),
        _ => Err(failure::bad_arguments(complaint)),
    }
}

fn two<'a>(args: &'a [String], complaint: &str) -> Result<(&'a str, &'a str), Failure> {
    match args {
        [first, second] => Ok((first, second)),
        _ => Err(failure::bad_arguments(complaint)),
    }
}

impl User {
    pub async fn run(self, context: &Context) -> anyhow::Result<()> {
        let client = &context.client;
        match self {
            User::Add(add) => add.run(context).await,
            User::Delete { args } => {
                let user = one(&args, "user delete command requires user name as its argument")?;
                let answer = client.user_delete(user).await?;
                context.print(&Done { text: format!("User {user} deleted"), answer: &answer })
            }
            User::Get { args, detail } => {
                let user = one(&args, "user get command requires user name as its argument")?;
                get_user(context, user, detail).await
            }
            User::List { args } if args.is_empty() => context.print(&client.user_list().await?),
            User::List { .. } => Err(failure::bad_arguments("user list command requires no arguments").into()),
            User::Passwd { args, interactive } => {
                let user = one(&args, "user passwd command requires user name as its argument")?;
                let password = if interactive { password::choose(user)? } else { password::from_input()? };
                let answer = client.user_change_password(user, &password).await?;
                context.print(&Done { text: "Password updated".to_string(), answer: &answer })
            }
            User::GrantRole { args } => {
                let complaint = "user grant command requires user name and role name as its argument";
                let (user, role) = two(&args, complaint)?;
                let answer = client.user_grant_role(user, role).await?;
                context.print(&Done { text: format!("Role {role} is granted to user {user}"), answer: &answer })
            }
            User::RevokeRole { args } => {
                let (user, role) = two(&args, "user revoke-role requires user name and role name as its argument")?;
                let answer = client.user_revoke_role(user, role).await?;
                context.print(&Done { text: format!("Role {role} is revoked from user {user}"), answer: &answer })
            }
        }
    }
}

async fn get_user(context: &Context, user: &str, detail: bool) -> anyhow::Result<()> {
    let answer = context.client.user_get(user).await?;
    if !detail {
        return context.print(&UserShown { name: user, answer: &answer });
    }
    print_line(&format!("User: {user}"))?;
    for role in &answer.roles {
        print_line("")?;
        context.print(&RoleShown { name: role, answer: &context.client.role_get(role).await? })?;
    }
    Ok(())
}

impl AddUser {
    async fn run(self, context: &Context) -> anyhow::Result<()> {
        let given = one(&self.args, "user add command requires user name as its argument")?;
        let (user, password) = match given.split_once(':') {
            _ if self.no_password => (given, None),
            _ if !self.new_user_password.is_empty() => (given, Some(self.new_user_password.clone())),
            Some(("", _)) => return Err(failure::bad_arguments("empty user name is not allowed").into()),
            Some((user, password)) => (user, Some(password.to_string())),
            None if self.interactive => (given, Some(password::choose(given)?)),
            None => (given, Some(password::from_input()?)),
        };
        let answer = context.client.user_add(user, password.as_deref()).await?;
        context.print(&Done { text: format!("User {user} created"), answer: &answer })
    }
}

#[derive(Subcommand)]
pub enum Role {
    /// Add a role, which may nothing yet.
    #[command(override_usage = "pintlectl role add <NAME>")]
    Add {
        #[arg(value_name = "NAME")]
        args: Vec<String>,
    },
    /// Delete a role.
    #[command(override_usage = "pintlectl role delete <NAME>")]
    Delete {
        #[arg(value_name = "NAME")]
        args: Vec<String>,
    },
    /// Print what a role may do.
    #[command(override_usage = "pintlectl role get <NAME>")]
    Get {
        #[arg(value_name = "NAME")]
        args: Vec<String>,
    },
    /// Print all roles.
    List {
        #[arg(hide = true)]
        args: Vec<String>,
    },
    /// Let a role read, write, or both.
    #[command(
        override_usage = "pintlectl role grant-permission [OPTIONS] <ROLE> <read|write|readwrite> <KEY> [RANGE_END]"
    )]
    GrantPermission {
        #[arg(hide = true)]
        args: Vec<String>,
        #[command(flatten)]
        range: Range,
    },
    /// Take back what a role was let to do with a key or a range.
    #[command(override_usage = "pintlectl role revoke-permission [OPTIONS] <ROLE> <KEY> [RANGE_END]")]
    RevokePermission {
        #[arg(hide = true)]
        args: Vec<String>,
        #[command(flatten)]
        range: Range,
    },
}

#[derive(Args)]
pub struct Range {
    /// All keys that begin with the key given.
    #[arg(long)]
    prefix: bool,
    /// The key given and all after it.
    #[arg(long)]
    from_key: bool,
}

impl Range {
    fn keys(&self, args: &[String]) -> Result<Keys, Failure> {
        let refused = |text: &str| Err(failure::bad_arguments(text));
        let key = args.first().cloned().unwrap_or_default();
        let end = args.get(1).filter(|_| !key.is_empty());
        match (self.prefix, self.from_key, end) {
            (true, true, None) => refused("--from-key and --prefix flags are mutually exclusive"),
            (true, _, Some(_)) => refused("unexpected endkey argument with --prefix flag"),
            (_, true, Some(_)) => refused("unexpected endkey argument with --from-key flag"),
            (false, false, Some(end)) => Ok(Keys::range(key, end.clone())),
            (true, false, None) => Ok(Keys::prefix(key)),
            (false, true, None) => Ok(Keys::from(key)),
            // The server takes no empty key; this is the first one there can be.
            (false, false, None) if key.is_empty() => Ok(Keys::one("\0")),
            (false, false, None) => Ok(Keys::one(key)),
        }
    }
}

fn permission_type(name: &str) -> Result<Type, Failure> {
    match name.to_uppercase().as_str() {
        "READ" => Ok(Type::Read),
        "WRITE" => Ok(Type::Write),
        "READWRITE" => Ok(Type::Readwrite),
        _ => Err(failure::bad_arguments(format!("invalid permission type: {name}"))),
    }
}

impl Role {
    pub async fn run(self, context: &Context) -> anyhow::Result<()> {
        let client = &context.client;
        match self {
            Role::Add { args } => {
                let role = one(&args, "role add command requires role name as its argument")?;
                let answer = client.role_add(role).await?;
                context.print(&Done { text: format!("Role {role} created"), answer: &answer })
            }
            Role::Delete { args } => {
                let role = one(&args, "role delete command requires role name as its argument")?;
                let answer = client.role_delete(role).await?;
                context.print(&Done { text: format!("Role {role} deleted"), answer: &answer })
            }
            Role::Get { args } => {
                let name = one(&args, "role get command requires role name as its argument")?;
                context.print(&RoleShown { name, answer: &client.role_get(name).await? })
            }
            Role::List { args } if args.is_empty() => context.print(&client.role_list().await?),
            Role::List { .. } => Err(failure::bad_arguments("role list command requires no arguments").into()),
            Role::GrantPermission { args, range } => {
                let [role, permission, keys @ ..] = args.as_slice() else { return Err(grant_complaint().into()) };
                if keys.is_empty() {
                    return Err(grant_complaint().into());
                }
                let permission = permission_type(permission)?;
                let answer = client.role_grant_permission(role, permission, range.keys(keys)?).await?;
                context.print(&Done { text: format!("Role {role} updated"), answer: &answer })
            }
            Role::RevokePermission { args, range } => {
                let [role, keys @ ..] = args.as_slice() else { return Err(revoke_complaint().into()) };
                let Some(key) = keys.first() else { return Err(revoke_complaint().into()) };
                let revoked = range.keys(keys)?;
                let text = revoked_text(role, key, revoked.range_end());
                let answer = client.role_revoke_permission(role, revoked).await?;
                context.print(&Done { text, answer: &answer })
            }
        }
    }
}

fn grant_complaint() -> Failure {
    failure::bad_arguments("role grant command requires role name, permission type, and key [endkey] as its argument")
}

fn revoke_complaint() -> Failure {
    failure::bad_arguments("role revoke-permission command requires role name and key [endkey] as its argument")
}

fn revoked_text(role: &str, key: &str, end: &[u8]) -> String {
    match end {
        b"" => format!("Permission of key {key} is revoked from role {role}"),
        OPEN_END => format!("Permission of range [{key}, <open ended> is revoked from role {role}"),
        end => {
            let end = String::from_utf8_lossy(end);
            format!("Permission of range [{key}, {end}) is revoked from role {role}")
        }
    }
}
