// SPDX-License-Identifier: Apache-2.0

package config_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/meshd/meshd/internal/config"
)

// badFiles begin in line 2, below head, unless they are whole files. The errors are without
// the file name meshd.yaml.
var badFiles = []struct {
	name  string
	whole bool
	file  string
	want  []string
}{
	// The file as such.
	{"empty", true, "", []string{
		"1: the file is empty: write at least secret-file: /etc/meshd/secret",
	}},
	{"comments", true, "# nothing\n", []string{
		"1: the file is empty: write at least secret-file: /etc/meshd/secret",
	}},
	{"null", true, "---\n~\n", []string{
		"1: the file is empty: write at least secret-file: /etc/meshd/secret",
	}},
	{"text", true, "hello", []string{
		"1: the file has no keys: write name: value, such as secret-file: /etc/meshd/secret",
	}},
	{"list", true, "# x\n- a\n", []string{
		"2: the file has no keys: write name: value, such as secret-file: /etc/meshd/secret",
	}},
	{"large", true, strings.Repeat("#", 1<<20+1), []string{
		"1: the file is larger than 1048576 bytes: is it the right file?",
	}},
	{"two documents", true, "secret-file: /a\n---\nsecret-file: /b\n", []string{
		"2: a second document begins here: keep one, without a line of ---",
	}},
	{"no secret file", true, "node: {name: a}\n", []string{
		"1: secret-file: is missing: write secret-file: /etc/meshd/secret",
	}},
	{"tab", false, "node:\n\tname: a\n", []string{
		"3: is indented with a tab: use spaces",
	}},
	{"indentation", false, "node:\n  name: a\n   location: b\n", []string{
		"4: is not YAML: mapping values are not allowed in this context: look at its indentation, brackets, quotes and colons",
	}},
	{"open bracket", false, "join: [a\nnode: {}\n# more\n", []string{
		"2: is not YAML: did not find expected ',' or ']': look at its indentation, brackets, quotes and colons",
	}},
	{"open quote", false, "node:\n  name: \"a\n  location: b\n", []string{
		"3: is not YAML: found unexpected end of stream: look at its indentation, brackets, quotes and colons",
	}},
	{"no colon", false, "join\nnode: {}\n", []string{
		"2: is not YAML: could not find expected ':': look at its indentation, brackets, quotes and colons",
	}},
	{"control character", false, "# a\nnode: {name: a\x01}\n", []string{
		"3: is not YAML: control characters are not allowed: look at its indentation, brackets, quotes and colons",
	}},
	{"not UTF-8", false, "# a\nnode: {name: a\xff}\n", []string{
		"3: is not YAML: invalid leading UTF-8 octet: look at its indentation, brackets, quotes and colons",
	}},
	{"syntax in a long file", false, strings.Repeat("#\n", 600) + "node:\n\tname: a\n", []string{
		"603: is not YAML: found character that cannot start any token: look at its indentation, brackets, quotes and colons",
	}},
	{"anchor and alias", false, "node: {name: &a x, location: *a}\n", []string{
		"2: node.name: has a YAML anchor or alias (& or *): write the value itself, in quotes if it begins with one of these characters",
		"2: node.location: has a YAML anchor or alias (& or *): write the value itself, in quotes if it begins with one of these characters",
	}},
	{"anchored section", false, "node: &n {name: x}\n", []string{
		"2: node: has a YAML anchor or alias (& or *): write the value itself, in quotes if it begins with one of these characters",
	}},
	{"anchored file", true, "&a\nsecret-file: /a\n", []string{
		"1: has a YAML anchor or alias (& or *): write the value itself, in quotes if it begins with one of these characters",
		"1: secret-file: is missing: write secret-file: /etc/meshd/secret",
	}},
	{"unknown alias", false, "node: {name: *a}\n", []string{
		"2: is not YAML: unknown anchor 'a' referenced: look at its indentation, brackets, quotes and colons",
	}},
	{"merge", false, "<<: {join: [a]}\n", []string{
		"2: <<: unknown key: known here: secret-file, join, node, cluster, wireguard, gossip, relay, probe, cni, k3s, metrics",
	}},
	{"tag", false, "node: {name: !!str x}\n", []string{
		"2: node.name: has a YAML tag (!): write the value alone, in quotes if it begins with this character",
	}},

	// Keys.
	{"misspelled", false, "cluster:\n  overlays: [10.4.0.0/16]\n  dns: {adress: 10.43.0.10}\n", []string{
		"3: cluster.overlays: unknown key: did you mean cluster.overlay?",
		"4: cluster.dns.adress: unknown key: did you mean cluster.dns.address?",
	}},
	{"other spelling", false, "wireguard: {listenPort: 1}\n", []string{
		"2: wireguard.listenPort: unknown key: did you mean wireguard.listen-port?",
	}},
	{"other section", false, "\n\nlisten-port: 1\n", []string{
		"4: listen-port: unknown key: did you mean listen-port in the section wireguard?",
	}},
	{"with its section", false, "node.name: a\n", []string{
		"2: node.name: unknown key: did you mean name in the section node?",
	}},
	{"unknown", false, "frobnicate: 1\ncluster: {frobnicate: 1}\n", []string{
		"2: frobnicate: unknown key: known here: secret-file, join, node, cluster, wireguard, gossip, relay, probe, cni, k3s, metrics",
		"3: cluster.frobnicate: unknown key: known here: name, generation, trust, trusted, mode, encapsulation, gateways, forget-after, overlay, pods, pod-prefix, services, dns",
	}},
	{"strange", false, "\"a\\nb\": 1\n\"\": 1\n1: 1\n", []string{
		`2: "a\nb": unknown key: known here: secret-file, join, node, cluster, wireguard, gossip, relay, probe, cni, k3s, metrics`,
		`3: "": unknown key: known here: secret-file, join, node, cluster, wireguard, gossip, relay, probe, cni, k3s, metrics`,
		"4: 1: unknown key: known here: secret-file, join, node, cluster, wireguard, gossip, relay, probe, cni, k3s, metrics",
	}},
	{"long", false, strings.Repeat("a", 200) + ": 1\n", []string{
		`2: "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"…: unknown key: known here: secret-file, join, node, cluster, wireguard, gossip, relay, probe, cni, k3s, metrics`,
	}},
	{"no plain text", false, "? [a, b]\n: 1\nnode: {? {a: b} : c}\n", []string{
		"2: has a key that is not plain text: write name: value",
		"4: node: has a key that is not plain text: write name: value",
	}},
	{"twice", false, "node: {name: a}\ncluster: {name: a, name: b}\nnode: {name: b}\nsecret-file: /b\n", []string{
		"3: cluster.name: is here a second time, after line 3: keep one of the two",
		"4: node: is here a second time, after line 2: keep one of the two",
		"5: secret-file: is here a second time, after line 1: keep one of the two",
	}},
	{"k3s", false, "k3s: {write-config: yes, role: master, etcd: fast}\n", []string{
		`2: k3s.write-config: "yes" is neither true nor false: write true or false`,
		`2: k3s.role: "master" is unknown: write auto, or server, or agent`,
		`2: k3s.etcd: "fast" is unknown: write lan, or wan`,
	}},
	{"nothing like it", false, "zzz: 1\n", []string{
		"2: zzz: unknown key: known here: secret-file, join, node, cluster, wireguard, gossip, relay, probe, cni, k3s, metrics",
	}},

	// Kinds of values.
	{"section is text", false, "node: a\ncluster: [a]\n", []string{
		"2: node: is a section: write its keys below it, as name: value",
		"3: cluster: is a section: write its keys below it, as name: value",
	}},
	{"list is text", false, "join: aws.example.com\ncluster:\n  pods: 10.42.0.0/16\n", []string{
		"2: join: is a list: write [aws.example.com]",
		"4: cluster.pods: is a list: write [10.42.0.0/16]",
	}},
	{"list is a section", false, "join: {a: b}\n", []string{
		"2: join: is a list: write its entries in brackets, or below it, each after a dash",
	}},
	{"list is nothing", false, "join:\n", []string{
		"2: join: has no value: write a list, or remove the key",
	}},
	{"list is empty", false, "cluster: {overlay: [], pods: []}\n", []string{
		"2: cluster.overlay: is empty: remove the key for its default",
		"2: cluster.pods: is empty: remove the key for its default",
	}},
	{"text is a list", false, "node: {name: [a]}\njoin: [[2001:db8::1]:7946]\n", []string{
		"2: node.name: is a single value: write it behind the colon, in quotes if it has brackets or braces",
		"3: join[0]: is a single value: write it behind the colon, in quotes if it has brackets or braces",
	}},
	{"text is a section", false, "node: {name: {a: b}}\n", []string{
		"2: node.name: is a single value: write it behind the colon, in quotes if it has brackets or braces",
	}},
	{"text is nothing", false, "node:\n  name:\n  location: ~\njoin: [a, ~]\n", []string{
		"3: node.name: has no value: write one, or remove the key",
		"4: node.location: has no value: write one, or remove the key",
		"5: join[1]: has no value: write one, or remove the key",
	}},

	// Single values.
	{"secret file", true, "secret-file: secret\n", []string{
		"1: secret-file: is not an absolute path: write one such as /etc/meshd/secret",
	}},
	{"secret itself", true, "secret-file: " + sampleSecret + "\n", []string{
		"1: secret-file: is a secret, and not the path of a file with one: write it to /etc/meshd/secret with mode 0600, and that path here",
	}},
	{"no secret path", true, "secret-file:\n", []string{
		"1: secret-file: has no value: write one, or remove the key",
	}},
	{"names", false, "node:\n  name: Aws-1\n  location: a_b\ncluster: {name: " + strings.Repeat("a", 64) + "}\n", []string{
		"3: node.name: Aws-1 has upper-case letters: write aws-1",
		`4: node.location: "a_b" is not a name: use lower-case letters, digits, dots and dashes, at most 63 characters`,
		`5: cluster.name: "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"… is not a name: use lower-case letters, digits, dots and dashes, at most 63 characters`,
	}},
	{"more names", false, "node:\n  name: -a\n  location: \"\"\ncluster: {name: a..b, dns: {domain: a b}}\n", []string{
		`3: node.name: "-a" is not a name: use lower-case letters, digits, dots and dashes, at most 63 characters`,
		`4: node.location: "" is not a name: use lower-case letters, digits, dots and dashes, at most 63 characters`,
		`5: cluster.name: "a..b" is not a name: use lower-case letters, digits, dots and dashes, at most 63 characters`,
		`5: cluster.dns.domain: "a b" is not a domain: write one such as cluster.local`,
	}},
	{"join", false, "join:\n- \"\"\n- \":7946\"\n- a:0\n- a:70000\n- a:x\n- \"[::1\"\n- \"[::1]x\"\n- \"[a]:1\"\n- 1.2.3.256\n- 0.0.0.0\n- fe80::1%eth0\n- a b\n", []string{
		`3: join[0]: "" has no host: write an IP address or a name before the port`,
		`4: join[1]: ":7946" has no host: write an IP address or a name before the port`,
		`5: join[2]: the port of "a:0": 0 is out of range: write one from 1 to 65535`,
		`6: join[3]: the port of "a:70000": 70000 is out of range: write one from 1 to 65535`,
		`7: join[4]: the port of "a:x": "x" is not a whole number: write one from 1 to 65535`,
		`8: join[5]: "[::1" has no closing bracket: write [::1]`,
		`9: join[6]: "[::1]x" has text behind the bracket: write [address]:port`,
		`10: join[7]: "a" is neither an IP address nor a host name: write one such as 203.0.113.7, 2001:db8::7 or aws.example.com`,
		`11: join[8]: "1.2.3.256" is neither an IP address nor a host name: write one such as 203.0.113.7, 2001:db8::7 or aws.example.com`,
		"12: join[9]: 0.0.0.0 is not an address that other hosts can reach: write another one, or a name",
		"13: join[10]: fe80::1%eth0 is not an address that other hosts can reach: write another one, or a name",
		`14: join[11]: "a b" is neither an IP address nor a host name: write one such as 203.0.113.7, 2001:db8::7 or aws.example.com`,
	}},
	{"line break in a zone", false, "join: [\"fe80::1%\\n\"]\ngossip: {bind: \"[fe80::1%\\n]:1\"}\n", []string{
		`2: join[0]: "fe80::1%\n" is not an address that other hosts can reach: write another one, or a name`,
		`3: gossip.bind: "[fe80::1%\n]:1" is nothing to listen on: write one such as :7946, 192.0.2.1:7946 or [2001:db8::1]:7946`,
	}},
	{"endpoint", false, "node: {endpoint: \"127.0.0.1:51820\"}\n", []string{
		"2: node.endpoint: 127.0.0.1 is not an address that other hosts can reach: write the node's public address or name",
	}},
	{"name of every host", false, "node: {name: localhost}\n", []string{
		"2: node.name: localhost names every host: write a name of the host's own, which k3s has for it too",
	}},
	{"name of every host, with a domain", false, "node: {name: localhost.localdomain}\n", []string{
		"2: node.name: localhost.localdomain names every host: write a name of the host's own, which k3s has for it too",
	}},
	{"address as name", false, "node: {name: 192.0.2.1}\n", []string{
		"2: node.name: 192.0.2.1 is an address: write a name of the host's own, which k3s has for it too",
	}},
	{"endpoint by a local name", false, "node: {endpoint: localhost}\n", []string{
		"2: node.endpoint: localhost is not an address that other hosts can reach: write the node's public address or name",
	}},
	{"endpoint is multicast", false, "node: {endpoint: \"ff02::1\"}\n", []string{
		"2: node.endpoint: ff02::1 is not an address that other hosts can reach: write another one, or a name",
	}},
	{"endpoint port", false, "node: {endpoint: \"a.example.com:\"}\n", []string{
		`2: node.endpoint: the port of "a.example.com:": "" is not a whole number: write one from 1 to 65535`,
	}},
	{"location without an internal IP", false, "node:\n  internal-ip: none\n  location: office\n", []string{
		"4: node.location: does not go with node.internal-ip: nodes of a location reach each other at their internal IPs: set node.internal-ip to this node's address in that location's network, or remove node.location",
	}},
	{"internal IP without length", false, "node: {internal-ip: 192.168.10.1}\n", []string{
		"2: node.internal-ip: 192.168.10.1 has no prefix length: write 192.168.10.1/24, if that is its network's",
	}},
	{"internal IPv6 without length", false, "node: {internal-ip: \"fd12::1\"}\n", []string{
		"2: node.internal-ip: fd12::1 has no prefix length: write fd12::1/64, if that is its network's",
	}},
	{"internal IP is a network", false, "node: {internal-ip: 192.168.10.0/24}\n", []string{
		"2: node.internal-ip: 192.168.10.0/24 is a network: write the node's own address in it, such as 192.168.10.1/24",
	}},
	{"internal IP is loopback", false, "node: {internal-ip: 127.0.0.1/8}\n", []string{
		"2: node.internal-ip: 127.0.0.1 is not an address on a private network: write the node's own, such as 192.168.10.1/24",
	}},
	{"internal IP is text", false, "node: {internal-ip: eth0}\n", []string{
		`2: node.internal-ip: "eth0" is not an address with a prefix length: write one such as 192.168.10.1/24 or fd12::1/64, or none`,
	}},
	{"encryption unknown", false, "node: {encryption: never}\n", []string{
		`2: node.encryption: "never" is unknown: write auto, or required`,
	}},
	{"relay unknown, and too slow", false, "node: {relay: yes}\nrelay: {max-rate: 9999}\n", []string{
		`2: node.relay: "yes" is unknown: write auto, or prefer, or never`,
		`3: relay.max-rate: "9999" is not a number of bytes a second: write one from 10000 to 1250000000 without a unit, or 0 for no limit`,
	}},
	{"port mapping unknown", false, "node: {port-mapping: never}\n", []string{
		`2: node.port-mapping: "never" is unknown: write auto, or off`,
	}},
	{"relay's rate with a unit", false, "relay: {max-rate: 1M}\n", []string{
		`2: relay.max-rate: "1M" is not a number of bytes a second: write one from 10000 to 1250000000 without a unit, or 0 for no limit`,
	}},
	{"gateway unknown", false, "node: {gateway: yes}\n", []string{
		`2: node.gateway: "yes" is unknown: write auto, or prefer, or never`,
	}},
	{"keepalive without unit", false, "node: {keepalive: 25}\n", []string{
		"2: node.keepalive: 25 has no unit: write 25s",
	}},
	{"keepalive", false, "node: {keepalive: often}\n", []string{
		`2: node.keepalive: "often" is not a duration: write seconds such as 25s, or 0 for never`,
	}},
	{"keepalive in parts of seconds", false, "node: {keepalive: 1500ms}\n", []string{
		"2: node.keepalive: 1500ms is not a number of whole seconds from 0 to 65535: write seconds such as 25s, or 0 for never",
	}},
	{"keepalive too long", false, "node: {keepalive: 24h}\n", []string{
		"2: node.keepalive: 24h is not a number of whole seconds from 0 to 65535: write seconds such as 25s, or 0 for never",
	}},
	{"unknown words", false, "cluster:\n  trust: none\n  mode: star\n  encapsulation: ipip\n  gateways: many\nwireguard: {implementation: go}\n", []string{
		`3: cluster.trust: "none" is unknown: write open, or list`,
		`4: cluster.mode: "star" is unknown: write full, or location, or cross`,
		`5: cluster.encapsulation: "ipip" is unknown: write never, or crosssubnet, or always`,
		`6: cluster.gateways: "many" is not a whole number: write one from 1 to 16`,
		`7: wireguard.implementation: "go" is unknown: write auto, or kernel, or userspace`,
	}},
	{"gateways", false, "cluster: {gateways: 17}\n", []string{
		"2: cluster.gateways: 17 is out of range: write one from 1 to 16",
	}},
	{"fingerprints", false, "cluster:\n  trust: list\n  trusted: [aws-1, 00112233445566778899aabbccddee]\n", []string{
		`4: cluster.trusted[0]: "aws-1" is not a fingerprint: write its 32 hexadecimal digits; meshd status shows them`,
		`4: cluster.trusted[1]: "00112233445566778899aabbccddee" is not a fingerprint: write its 32 hexadecimal digits; meshd status shows them`,
	}},
	{"forget after", false, "cluster: {forget-after: 30d}\n", []string{
		`2: cluster.forget-after: "30d" is not a duration: write one from 1h to 87600h, such as 720h`,
	}},
	{"forget at once", false, "cluster: {forget-after: 0s}\n", []string{
		"2: cluster.forget-after: 0s is out of range: write one from 1h to 87600h, such as 720h",
	}},
	{"probe", false, "probe: {interval: 49ms, misses: 1}\n", []string{
		"2: probe.interval: 49ms is out of range: write one from 50ms to 10s, such as 250ms",
		"2: probe.misses: 1 is out of range: write one from 2 to 100",
	}},
	{"probe without unit", false, "probe: {interval: 250, misses: 101}\n", []string{
		`2: probe.interval: "250" is not a duration: write one from 50ms to 10s, such as 250ms`,
		"2: probe.misses: 101 is out of range: write one from 2 to 100",
	}},
	{"relay at a host name", false, "relay: {listen: \"aws:443\"}\n", []string{
		`2: relay.listen: "aws:443" is not an IP address and a port: write one such as :443, 192.0.2.1:443 or [2001:db8::1]:443`,
	}},
	{"relay without TLS", false, "relay: {listen: \":7946\"}\n", []string{
		"2: relay.listen: has port 7946, but nodes speak TLS to the ports 443 and 8443, and to no others: write :443, or :8443 where that is taken",
	}},
	{"gossip at a port of TLS", false, "gossip: {bind: \":443\", advertise: \"a.example.com:8443\"}\n", []string{
		"2: gossip.bind: has port 443, but nodes speak TLS to the ports 443 and 8443, and to no others: choose another port; relay.listen is for hosts that reach only this one",
		"2: gossip.advertise: has port 8443, but nodes speak TLS to the ports 443 and 8443, and to no others: choose another port; relay.listen is for hosts that reach only this one",
	}},
	{"metrics anywhere", false, "metrics: {listen: \":9586\"}\n", []string{
		`2: metrics.listen: ":9586" is not an IP address and a port: write one such as 127.0.0.1:9586 or [::1]:9586, or "" for none`,
	}},
	{"metrics nowhere", false, "metrics: {listen: \"127.0.0.1:0\"}\n", []string{
		`2: metrics.listen: 127.0.0.1:0 is nothing to listen on: write one such as 127.0.0.1:9586 or [::1]:9586, or "" for none`,
	}},
	{"generation", false, "cluster: {generation: 0}\n", []string{
		"2: cluster.generation: 0 is out of range: write one from 1 to 2147483647",
	}},
	{"networks", false, "cluster:\n  overlay: [10.4.0.1/16]\n  pods: [\"fd00::1/48\"]\n  services: [10.43.0.0]\n", []string{
		"3: cluster.overlay[0]: 10.4.0.1/16 has host bits set: write 10.4.0.0/16",
		"4: cluster.pods[0]: fd00::1/48 has host bits set: write fd00::/48",
		"5: cluster.services[0]: 10.43.0.0 has no prefix length: write 10.43.0.0/16, if that is its network's",
	}},
	{"more networks", false, "cluster:\n  overlay: [10.4/16]\n  pods: [127.0.0.0/16]\n  services: [\"::ffff:10.43.0.0/112\"]\n", []string{
		`3: cluster.overlay[0]: "10.4/16" is not an address with a prefix length: write one such as 10.42.0.0/16 or fd00:42::/48`,
		"4: cluster.pods[0]: 127.0.0.0/16 can't be used: it overlaps 127.0.0.0/8, which is loopback: write another range, or a smaller one",
		`5: cluster.services[0]: "::ffff:10.43.0.0/112" is not an address with a prefix length: write one such as 10.42.0.0/16 or fd00:42::/48`,
	}},
	{"networks nobody may give away", false, "node:\n  internal-ip: 10.0.0.5/0\n  allowed-location-ips: [0.0.0.0/0, 2000::/3, 169.254.169.254/32, 192.168.0.0/16]\n", []string{
		"3: node.internal-ip: 10.0.0.5/0 can't be used: it overlaps 0.0.0.0/8, which is this host (RFC 1122): write the length of the node's own network, as `ip address` shows it",
		"4: node.allowed-location-ips[0]: 0.0.0.0/0 can't be used: it overlaps 0.0.0.0/8, which is this host (RFC 1122): write another range, or a smaller one",
		"4: node.allowed-location-ips[1]: 2000::/3 can't be used: it is wider than a /16, and so a good part of the default route: write another range, or a smaller one",
		"4: node.allowed-location-ips[2]: 169.254.169.254/32 can't be used: it overlaps 169.254.0.0/16, which is link-local, with the metadata services of clouds: write another range, or a smaller one",
	}},
	{"lengths", false, "cluster: {pod-prefix: [x]}\n", []string{
		`2: cluster.pod-prefix[0]: "x" is not a whole number: write one from 1 to 126`,
	}},
	{"resolver", false, "cluster: {dns: {address: dns.example.com}}\n", []string{
		`2: cluster.dns.address: "dns.example.com" is not a usable IP address: write one such as 10.43.0.10`,
	}},
	{"device names", false, "wireguard:\n  interface: meshd0123456789a\ncni:\n  bridge: a/b\n", []string{
		`3: wireguard.interface: "meshd0123456789a" has 16 characters: a network device's name has at most 15`,
		`5: cni.bridge: "a/b" is not the name of a network device: use letters, digits and dashes`,
	}},
	{"ports", false, "wireguard:\n  listen-port: 0\n", []string{
		"3: wireguard.listen-port: 0 is out of range: write one from 1 to 65535",
	}},
	{"port with zeroes", false, "wireguard:\n  listen-port: 0080\n", []string{
		`3: wireguard.listen-port: "0080" is not a whole number: write one from 1 to 65535`,
	}},
	{"small MTU", false, "wireguard: {mtu: 500}\n", []string{
		"2: wireguard.mtu: 500 is out of range: write one from 576 to 9000, or auto",
	}},
	{"large MTU", false, "wireguard: {mtu: 65535}\n", []string{
		"2: wireguard.mtu: 65535 is out of range: write one from 576 to 9000, or auto",
	}},
	{"MTU", false, "wireguard: {mtu: big}\n", []string{
		`2: wireguard.mtu: "big" is not a whole number: write one from 576 to 9000, or auto`,
	}},
	{"bind to a name", false, "gossip: {bind: \"localhost:7946\"}\n", []string{
		`2: gossip.bind: "localhost:7946" is not an IP address and a port: write one such as :7946, 192.0.2.1:7946 or [2001:db8::1]:7946`,
	}},
	{"bind without port", false, "gossip: {bind: \":\"}\n", []string{
		`2: gossip.bind: the port of ":": "" is not a whole number: write one from 1 to 65535`,
	}},
	{"bind to multicast", false, "gossip: {bind: \"224.0.0.1:7946\"}\n", []string{
		"2: gossip.bind: 224.0.0.1:7946 is nothing to listen on: write one such as :7946, 192.0.2.1:7946 or [2001:db8::1]:7946",
	}},
	{"cni", false, "cni:\n  enabled: maybe\n  conf-dir: net.d\n  bin-dir: \"/a\\nb\"\n", []string{
		`3: cni.enabled: "maybe" is neither true nor false: write true or false`,
		`4: cni.conf-dir: "net.d" is not an absolute path: write one that begins with /`,
		`5: cni.bin-dir: "/a\nb" is not an absolute path: write one that begins with /`,
	}},

	// Settings that contradict each other.
	{"two ranges of a family", false, "cluster:\n  overlay: [10.4.0.0/16, 10.5.0.0/16]\n", []string{
		"3: cluster.overlay[1]: 10.5.0.0/16 is a second IPv4 range: keep one a family",
	}},
	{"two pod CIDRs of a family", false, "node: {pod-cidr: [10.42.1.0/24, 10.42.2.0/24]}\n", []string{
		"2: node.pod-cidr[1]: 10.42.2.0/24 is a second IPv4 range: keep one a family",
	}},
	{"families", false, "cluster:\n  overlay: [10.4.0.0/16, \"fd00:4::/112\"]\n", []string{
		"3: cluster.overlay: cluster.overlay has IPv4 and IPv6 and cluster.pods has IPv4: write a range of each family in both, or in neither",
	}},
	{"families the other way", false, "cluster:\n  pods: [\"fd00:42::/48\"]\n  overlay: [10.4.0.0/16]\n", []string{
		"4: cluster.overlay: cluster.overlay has IPv4 and cluster.pods has IPv6: write a range of each family in both, or in neither",
	}},
	{"number of lengths", false, "cluster:\n  pods: [10.42.0.0/16]\n  pod-prefix: [24, 64]\n", []string{
		"4: cluster.pod-prefix: cluster.pod-prefix has 2 entries and cluster.pods has 1: write one length for each of cluster.pods, in the same order",
	}},
	{"length shorter than the range", false, "cluster:\n  pod-prefix: [12]\n", []string{
		"3: cluster.pod-prefix[0]: a node's pod CIDR of /12 does not fit into 10.42.0.0/16: write a cluster.pod-prefix from 16 to 30",
	}},
	{"length without room", false, "cluster:\n  pod-prefix: [31]\n", []string{
		"3: cluster.pod-prefix[0]: a node's pod CIDR of /31 does not fit into 10.42.0.0/16: write a cluster.pod-prefix from 16 to 30",
	}},
	{"range narrower than the length", false, "cluster:\n  pods: [10.42.0.0/25]\n", []string{
		"3: cluster.pods[0]: a node's pod CIDR of /24 does not fit into 10.42.0.0/25: write a cluster.pod-prefix from 25 to 30",
	}},
	{"overlap with a default", false, "cluster:\n  overlay: [10.42.0.0/20]\n", []string{
		"3: cluster.overlay[0]: 10.42.0.0/20 overlaps cluster.pods[0], 10.42.0.0/16: choose ranges that share no address",
	}},
	{"overlap", false, "cluster:\n  services: [10.96.0.0/12]\n  pods: [10.100.0.0/16]\n  dns: {address: 10.96.0.10}\n", []string{
		"4: cluster.pods[0]: 10.100.0.0/16 overlaps cluster.services[0], 10.96.0.0/12: choose ranges that share no address",
	}},
	{"overlap with what stands above", false, "cluster:\n  pods: [10.50.0.0/16]\n  overlay: [10.50.128.0/17]\n", []string{
		"4: cluster.overlay[0]: 10.50.128.0/17 overlaps cluster.pods[0], 10.50.0.0/16: choose ranges that share no address",
	}},
	{"overlay without room", false, "cluster: {overlay: [10.4.0.0/31]}\n", []string{
		"2: cluster.overlay[0]: 10.4.0.0/31 has no room for nodes and clients: write a range of /30 or wider",
	}},
	{"pod CIDR outside", false, "node: {pod-cidr: [10.44.7.0/24]}\n", []string{
		"2: node.pod-cidr[0]: 10.44.7.0/24 is not in cluster.pods, 10.42.0.0/16: write a range in it, or remove the key",
	}},
	{"pod CIDR of another length", false, "node: {pod-cidr: [10.42.7.0/25]}\n", []string{
		"2: node.pod-cidr[0]: 10.42.7.0/25 is not a /24, as cluster.pod-prefix says: write 10.42.7.0/24",
	}},
	{"pod CIDR beyond the overlay", false, "node: {pod-cidr: [10.42.127.0/24]}\ncluster: {overlay: [10.4.0.0/24]}\n", []string{
		"2: node.pod-cidr[0]: 10.42.127.0/24 is beyond the last of 127 pod CIDRs for which cluster.overlay has addresses: write one up to 10.42.126.0/24, or widen cluster.overlay",
	}},
	{"pod CIDRs of two slots", false, "node:\n  pod-cidr: [10.42.7.0/24, \"fd00:42:0:8::/64\"]\ncluster:\n  overlay: [10.4.0.0/16, \"fd00:4::/112\"]\n  pods: [10.42.0.0/16, \"fd00:42::/48\"]\n", []string{
		"3: node.pod-cidr[1]: fd00:42:0:8::/64 is slot 8, but 10.42.7.0/24 is slot 7: write [10.42.7.0/24, fd00:42:0:7::/64], or only one of the two",
	}},
	{"resolver outside", false, "cluster: {dns: {address: 10.44.0.10}}\n", []string{
		"2: cluster.dns.address: the resolver 10.44.0.10 is not in cluster.services, 10.43.0.0/16: set cluster.dns.address to the address of the Service kube-dns",
	}},
	{"list of nobody", false, "cluster:\n  trust: list\n", []string{
		"3: cluster.trust: is list, but cluster.trusted names nobody: write the fingerprints of all nodes there; meshd status shows them",
	}},
	{"no room for a resolver", false, "cluster:\n  services: [10.43.0.0/29]\n", []string{
		"3: cluster.services: the resolver 10.43.0.10 is not in cluster.services, 10.43.0.0/29: set cluster.dns.address to the address of the Service kube-dns",
	}},
	{"inside the mesh", false, "join: [a, 10.4.0.1]\nnode:\n  endpoint: 10.42.0.1\n  internal-ip: 10.43.1.1/24\n  allowed-location-ips: [192.168.0.0/24, 10.0.0.0/8]\ngossip: {advertise: 10.4.0.2}\n", []string{
		"2: join[1]: 10.4.0.1 lies in cluster.overlay[0], 10.4.0.0/16: it must be outside the mesh: change it, or the cluster's range",
		"4: node.endpoint: 10.42.0.1 lies in cluster.pods[0], 10.42.0.0/16: it must be outside the mesh: change it, or the cluster's range",
		"5: node.internal-ip: 10.43.1.1 lies in cluster.services[0], 10.43.0.0/16: it must be outside the mesh: change it, or the cluster's range",
		"6: node.allowed-location-ips[1]: 10.0.0.0/8 overlaps cluster.overlay[0], 10.4.0.0/16: it must be outside the mesh: change it, or the cluster's range",
		"7: gossip.advertise: 10.4.0.2 lies in cluster.overlay[0], 10.4.0.0/16: it must be outside the mesh: change it, or the cluster's range",
	}},
	{"many networks", false, "node:\n  allowed-location-ips: [10.0.0.0/24, 10.0.1.0/24, 10.0.2.0/24, 10.0.3.0/24, 10.1.0.0/24, 10.1.1.0/24, 10.1.2.0/24, 10.1.3.0/24, 10.1.4.0/24]\n", []string{
		"3: node.allowed-location-ips: has 9 networks: keep at most 8; wider ones may replace several",
	}},
	{"MTU and IPv6", false, "wireguard: {mtu: 1279}\ncluster: {overlay: [\"fd00:4::/112\"], pods: [\"fd00:42::/48\"]}\n", []string{
		"2: wireguard.mtu: 1279 is too small for IPv6, which the cluster's ranges use: write at least 1280, or auto",
	}},
	{"one port twice", false, "wireguard: {listen-port: 7946}\n", []string{
		"2: wireguard.listen-port: has port 7946, as gossip.bind has, and both are UDP: choose another port",
	}},
	{"one port twice, gossip's", false, "wireguard: {listen-port: 4000}\ngossip: {bind: \":4000\"}\n", []string{
		"3: gossip.bind: has port 4000, as wireguard.listen-port has, and both are UDP: choose another port",
	}},
	{"links", false, "node:\n  links: [west.conf, /etc/meshd/west, /etc/meshd/meshd0123456789a.conf, /etc/meshd/far west.conf, /etc/meshd/.conf]\n", []string{
		`3: node.links[0]: "west.conf" is not an absolute path that ends in .conf: write a path such as /etc/meshd/west.conf, in which west is what the other cluster is called here`,
		`3: node.links[1]: "/etc/meshd/west" is not an absolute path that ends in .conf: write a path such as /etc/meshd/west.conf, in which west is what the other cluster is called here`,
		`3: node.links[2]: "meshd0123456789a" can't be the name of a cluster and of a network device, as its file's name has to be: write a path such as /etc/meshd/west.conf, in which west is what the other cluster is called here, with at most 15 letters, digits and dashes`,
		`3: node.links[3]: "far west" can't be the name of a cluster and of a network device, as its file's name has to be: write a path such as /etc/meshd/west.conf, in which west is what the other cluster is called here, with at most 15 letters, digits and dashes`,
		`3: node.links[4]: "" can't be the name of a cluster and of a network device, as its file's name has to be: write a path such as /etc/meshd/west.conf, in which west is what the other cluster is called here, with at most 15 letters, digits and dashes`,
	}},
	{"links that make one device", false, "node:\n  links: [/etc/meshd/west.conf, /srv/west.conf, /etc/meshd/meshd0.conf, /etc/meshd/kube-bridge.conf]\n", []string{
		"3: node.links[1]: makes a device west, as node.links[0] does: give the file another name",
		"3: node.links[2]: makes a device meshd0, as wireguard.interface does: give the file another name",
		"3: node.links[3]: makes a device kube-bridge, as cni.bridge does: give the file another name",
	}},
	{"access of other clusters", false, "node:\n  link-access: [internet, all, 0.0.0.0/0, tcp/0@pods]\n", []string{
		"3: node.link-access[0]: internet is not for other clusters: name what they may reach in this cluster, such as services",
		`3: node.link-access[1]: parse access "all": want pods, services, nodes, internet, an address or a network, as in 10.43.0.0/16: write pods, services, nodes, an address or a network, each with tcp/PORT@ or udp/PORT@ before it to allow that port only`,
		"3: node.link-access[2]: access 0.0.0.0/0: write internet for all that is neither the cluster's nor private, in both families: write pods, services, nodes, an address or a network, each with tcp/PORT@ or udp/PORT@ before it to allow that port only",
		`3: node.link-access[3]: parse access "tcp/0@pods": before the @ goes tcp/PORT or udp/PORT, as in tcp/443@services: write pods, services, nodes, an address or a network, each with tcp/PORT@ or udp/PORT@ before it to allow that port only`,
	}},
	{"one device name twice", false, "wireguard: {interface: kube-bridge}\n", []string{
		"2: wireguard.interface: is kube-bridge, as cni.bridge is: choose another name",
	}},
}

// TestParseErrors checks the exact text of every error, because a person has to understand
// it.
func TestParseErrors(t *testing.T) {
	for _, tt := range badFiles {
		t.Run(tt.name, func(t *testing.T) {
			file := head + tt.file
			if tt.whole {
				file = tt.file
			}
			got, err := config.Parse("meshd.yaml", []byte(file))
			want := ""
			for _, line := range tt.want {
				want += "\nmeshd.yaml:" + line
			}
			if diff := cmp.Diff(want, "\n"+errorText(err)); diff != "" {
				t.Errorf("error (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(config.Config{}, got, netipTypes); diff != "" {
				t.Errorf("config beside an error (-want +got):\n%s", diff)
			}
		})
	}
}

func TestErrorsAreTyped(t *testing.T) {
	_, err := config.Parse("meshd.yaml", []byte(head+"cluster:\n  pods: [10.42.0.1/16]\n"))
	var got *config.Error
	if !errors.As(err, &got) {
		t.Fatalf("got error %#v, want a *config.Error", err)
	}
	want := config.Error{File: "meshd.yaml", Line: 3, Key: "cluster.pods[0]", Problem: "10.42.0.1/16 has host bits set", Advice: "write 10.42.0.0/16"}
	if *got != want {
		t.Errorf("got %+v, want %+v", *got, want)
	}
}
