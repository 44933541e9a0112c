//! Users, roles, and whether authentication is on.

use client::{
    Keys,
    pb::{
        AuthRoleAddResponse, AuthRoleDeleteResponse, AuthRoleGetResponse, AuthRoleGrantPermissionResponse,
        AuthRoleListResponse, AuthRoleRevokePermissionResponse, AuthStatusResponse, AuthUserAddResponse,
        AuthUserChangePasswordResponse, AuthUserDeleteResponse, AuthUserGetResponse, AuthUserGrantRoleResponse,
        AuthUserListResponse, AuthUserRevokeRoleResponse, ResponseHeader,
    },
};
use prost::Message;
use proto::authpb::{Permission, permission::Type};

use super::{Answer, Style, fields::Fields, go::quote, json::Object};

/// An answer that says no more than that it is done.
pub struct Done<'a, M> {
    pub text: String,
    pub answer: &'a M,
}

trait Headed {
    fn header(&self) -> &Option<ResponseHeader>;
}

macro_rules! headed {
    ($($answer:ty),* $(,)?) => {$(
        impl Headed for $answer {
            fn header(&self) -> &Option<ResponseHeader> {
                &self.header
            }
        }
    )*};
}

headed!(
    AuthRoleAddResponse,
    AuthRoleDeleteResponse,
    AuthRoleGrantPermissionResponse,
    AuthRoleRevokePermissionResponse,
    AuthUserAddResponse,
    AuthUserChangePasswordResponse,
    AuthUserDeleteResponse,
    AuthUserGrantRoleResponse,
    AuthUserRevokeRoleResponse,
);

impl<M: Headed + Message> Answer for Done<'_, M> {
    fn simple(&self, _: Style) -> Vec<u8> {
        format!("{}\n", self.text).into_bytes()
    }

    fn json(&self, _: Style) -> String {
        Object::new().header(self.answer.header()).end()
    }

    fn fields(&self) -> Option<Fields> {
        Some(Fields::of(self.answer.header()))
    }

    fn protobuf(&self) -> Option<Vec<u8>> {
        Some(self.answer.encode_to_vec())
    }
}

/// The end of a permission that has none.
pub const OPEN_END: &[u8] = b"\0";

pub struct Role<'a> {
    pub name: &'a str,
    pub answer: &'a AuthRoleGetResponse,
}

impl Answer for Role<'_> {
    fn simple(&self, _: Style) -> Vec<u8> {
        let mut out = format!("Role {}\n", self.name).into_bytes();
        for (title, kind) in [("KV Read:\n", Type::Read), ("KV Write:\n", Type::Write)] {
            out.extend_from_slice(title.as_bytes());
            // The role root is allowed everything without a permission that says so.
            if self.name == "root" && self.answer.perm.is_empty() {
                out.extend_from_slice(b"\t[, <open ended>\n");
            }
            let allowed = |perm: &&Permission| perm.perm_type() == kind || perm.perm_type() == Type::Readwrite;
            self.answer.perm.iter().filter(allowed).for_each(|perm| permission(&mut out, perm));
        }
        out
    }

    fn json(&self, _: Style) -> String {
        let permission = |perm: &Permission| {
            Object::new()
                .number("permType", perm.perm_type)
                .bytes("key", &perm.key)
                .bytes("range_end", &perm.range_end)
                .end()
        };
        Object::new().header(&self.answer.header).list("perm", self.answer.perm.iter().map(permission)).end()
    }

    fn fields(&self) -> Option<Fields> {
        Some(self.answer.perm.iter().fold(Fields::of(&self.answer.header), |fields, perm| {
            // etcdctl has two spaces here.
            let kind = format!(" {}", perm.perm_type().as_str_name());
            fields.show("PermType", kind).quoted("Key", &perm.key).quoted("RangeEnd", &perm.range_end)
        }))
    }

    fn protobuf(&self) -> Option<Vec<u8>> {
        Some(self.answer.encode_to_vec())
    }
}

fn permission(out: &mut Vec<u8>, perm: &Permission) {
    let Permission { key, range_end, .. } = perm;
    out.push(b'\t');
    if range_end.is_empty() {
        out.extend_from_slice(key);
    } else {
        out.push(b'[');
        out.extend_from_slice(key);
        if range_end == OPEN_END {
            out.extend_from_slice(b", <open ended>");
        } else {
            out.extend([b", ", range_end.as_ref(), b")"].concat());
        }
        if !key.is_empty() && Keys::prefix(key.clone()).range_end() == range_end {
            out.extend([b" (prefix ", key.as_ref(), b")"].concat());
        }
    }
    out.push(b'\n');
}

impl Answer for AuthRoleListResponse {
    fn simple(&self, _: Style) -> Vec<u8> {
        self.roles.iter().map(|role| format!("{role}\n")).collect::<String>().into_bytes()
    }

    fn json(&self, _: Style) -> String {
        Object::new().header(&self.header).list("roles", self.roles.iter().map(|role| super::json::text(role))).end()
    }

    fn fields(&self) -> Option<Fields> {
        let roles: String = self.roles.iter().map(|role| format!(" {}", quote(role.as_bytes()))).collect();
        Some(Fields::of(&self.header).line(&format!("\"Roles\" :{roles}")))
    }

    fn protobuf(&self) -> Option<Vec<u8>> {
        Some(self.encode_to_vec())
    }
}

pub struct User<'a> {
    pub name: &'a str,
    pub answer: &'a AuthUserGetResponse,
}

impl Answer for User<'_> {
    fn simple(&self, _: Style) -> Vec<u8> {
        let roles: String = self.answer.roles.iter().map(|role| format!(" {role}")).collect();
        format!("User: {}\nRoles:{roles}\n", self.name).into_bytes()
    }

    fn json(&self, _: Style) -> String {
        let roles = self.answer.roles.iter().map(|role| super::json::text(role));
        Object::new().header(&self.answer.header).list("roles", roles).end()
    }

    fn protobuf(&self) -> Option<Vec<u8>> {
        Some(self.answer.encode_to_vec())
    }
}

impl Answer for AuthUserListResponse {
    fn simple(&self, _: Style) -> Vec<u8> {
        self.users.iter().map(|user| format!("{user}\n")).collect::<String>().into_bytes()
    }

    fn json(&self, _: Style) -> String {
        Object::new().header(&self.header).list("users", self.users.iter().map(|user| super::json::text(user))).end()
    }

    fn protobuf(&self) -> Option<Vec<u8>> {
        Some(self.encode_to_vec())
    }
}

impl Answer for AuthStatusResponse {
    fn simple(&self, _: Style) -> Vec<u8> {
        format!("Authentication Status: {}\nAuthRevision: {}\n", self.enabled, self.auth_revision).into_bytes()
    }

    fn json(&self, _: Style) -> String {
        Object::new()
            .header(&self.header)
            .flag("enabled", self.enabled)
            .number("authRevision", self.auth_revision)
            .end()
    }

    fn protobuf(&self) -> Option<Vec<u8>> {
        Some(self.encode_to_vec())
    }
}
