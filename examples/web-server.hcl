# The policy of web-server.yaml in HCL.
version    = 1
name       = "web-server"
mode       = "observe"
match      = "priority"
essentials = true

defaults {
  ingress   = "deny"
  egress    = "deny"
  malformed = "drop"
}

sets "abuse" {
  file = "abuse.txt"
}

sets "administrators" {
  prefixes = ["192.0.2.0/24", "2001:db8:1::/48"]
}

rules "no-abuse" {
  priority  = 1
  direction = "ingress"
  source    = "@abuse"
  action    = "block"
}

rules "web" {
  direction         = "ingress"
  protocol          = "tcp"
  destination_ports = [80, 443]
  action            = { rate_limit = { packets = "10000/s", burst = 20000, per = "source" } }
}

rules "ssh" {
  direction         = "ingress"
  protocol          = "tcp"
  source            = "@administrators"
  destination_ports = 22
  action            = "allow"
}

rules "ping" {
  direction = "ingress"
  protocol  = "icmp"
  icmp_type = 8
  action    = { rate_limit = { packets = "10/s", per = "source" } }
}

rules "ping-ipv6" {
  direction = "ingress"
  protocol  = "icmpv6"
  icmp_type = 128
  action    = { rate_limit = { packets = "10/s", per = "source" } }
}

rules "dns-and-time" {
  direction         = "egress"
  protocol          = "udp"
  destination_ports = [53, 123]
  action            = "allow"
}

rules "dns-over-tcp" {
  direction         = "egress"
  protocol          = "tcp"
  destination_ports = 53
  action            = "allow"
}

rules "updates" {
  description       = "Packages, and certificates from ACME"
  direction         = "egress"
  protocol          = "tcp"
  destination_ports = [80, 443]
  uid               = 0
  action            = "allow"
}
