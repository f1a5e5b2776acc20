// SPDX-License-Identifier: Apache-2.0

package config

import (
	"net/netip"
	"strings"
	"time"

	"github.com/meshd/meshd/internal/mesh"
)

// key is a key of the file, and how its text is stored in a Config. Sections are not in
// the table: they are the parts of a path before the dots.
type key struct {
	path string // for example cluster.dns.address
	list bool
	// restart means that a running daemon can't use a new value, because sockets, the device
	// or other nodes' records depend on it.
	restart bool

	// set parses the text and stores the value, or appends it to a list.
	set func(*Config, string) *Error
	// get returns the stored value.
	get func(*Config) any
	// reset empties a list before its first entry is set, and returns how many entries the
	// default has.
	reset func(*Config) int
}

// one returns a key with a single value.
func one[T any](path string, field func(*Config) *T, parse func(string) (T, *Error)) key {
	return key{
		path: path,
		set: func(c *Config, text string) *Error {
			v, err := parse(text)
			if err == nil {
				*field(c) = v
			}
			return err
		},
		get: func(c *Config) any { return *field(c) },
	}
}

// many returns a key with a list of values.
func many[T any](path string, field func(*Config) *[]T, parse func(string) (T, *Error)) key {
	return key{
		path: path, list: true,
		set: func(c *Config, text string) *Error {
			v, err := parse(text)
			if err == nil {
				*field(c) = append(*field(c), v)
			}
			return err
		},
		get: func(c *Config) any { return *field(c) },
		reset: func(c *Config) int {
			n := len(*field(c))
			*field(c) = nil
			return n
		},
	}
}

// needsRestart returns a key whose new value takes effect only after a restart.
func needsRestart(k key) key {
	k.restart = true
	return k
}

// keys are all keys of the file, in the order of docs/configuration.md and
// packaging/meshd.yaml.
var keys = []key{
	one("secret-file", func(c *Config) *string { return &c.SecretFile }, secretPath),
	many("join", func(c *Config) *[]HostPort { return &c.Join }, joinAddress),

	needsRestart(one("node.name", func(c *Config) *string { return &c.Node.Name }, nodeName)),
	one("node.location", func(c *Config) *string { return &c.Node.Location }, label),
	one("node.endpoint", func(c *Config) *HostPort { return &c.Node.Endpoint }, endpoint),
	one("node.internal-ip", func(c *Config) *netip.Prefix { return &c.Node.InternalIP }, internalIP),
	one("node.gateway", func(c *Config) *mesh.GatewayPreference { return &c.Node.Gateway },
		choice(mesh.GatewayAuto, mesh.GatewayPrefer, mesh.GatewayNever)),
	one("node.exit", func(c *Config) *bool { return &c.Node.Exit }, boolean),
	one("node.encryption", func(c *Config) *string { return &c.Node.Encryption }, choice(EncryptionAuto, EncryptionRequired)),
	one("node.relay", func(c *Config) *mesh.RelayPreference { return &c.Node.Relay },
		choice(mesh.RelayAuto, mesh.RelayPrefer, mesh.RelayNever)),
	one("node.port-mapping", func(c *Config) *string { return &c.Node.PortMapping }, choice(PortMappingAuto, PortMappingOff)),
	one("node.keepalive", func(c *Config) **time.Duration { return &c.Node.Keepalive }, keepalive),
	many("node.pod-cidr", func(c *Config) *[]netip.Prefix { return &c.Node.PodCIDR }, network),
	many("node.allowed-location-ips", func(c *Config) *[]netip.Prefix { return &c.Node.AllowedLocationIPs }, network),
	many("node.links", func(c *Config) *[]string { return &c.Node.Links }, linkFile),
	many("node.link-access", func(c *Config) *[]mesh.Access { return &c.Node.LinkAccess }, linkAccess),

	needsRestart(one("cluster.name", func(c *Config) *string { return &c.Cluster.Name }, label)),
	one("cluster.generation", func(c *Config) *uint64 { return &c.Cluster.Generation }, generation),
	one("cluster.trust", func(c *Config) *mesh.Trust { return &c.Cluster.Trust }, choice(mesh.TrustOpen, mesh.TrustList)),
	many("cluster.trusted", func(c *Config) *[]mesh.ID { return &c.Trusted }, fingerprint),
	one("cluster.mode", func(c *Config) *mesh.Mode { return &c.Cluster.Mode },
		choice(mesh.ModeFull, mesh.ModeLocation, mesh.ModeCross)),
	one("cluster.encapsulation", func(c *Config) *mesh.Encapsulation { return &c.Cluster.Encapsulation },
		choice(mesh.EncapsulationNever, mesh.EncapsulationCrossSubnet, mesh.EncapsulationAlways)),
	one("cluster.gateways", func(c *Config) *int { return &c.Cluster.Gateways }, number(1, 16)),
	one("cluster.forget-after", func(c *Config) *time.Duration { return &c.ForgetAfter }, duration(time.Hour, 10*365*24*time.Hour, "720h")),
	needsRestart(many("cluster.overlay", func(c *Config) *[]netip.Prefix { return &c.Cluster.Overlay }, network)),
	needsRestart(many("cluster.pods", func(c *Config) *[]netip.Prefix { return &c.Cluster.Pods }, network)),
	needsRestart(many("cluster.pod-prefix", func(c *Config) *[]int { return &c.Cluster.PodPrefix }, number(1, 126))),
	many("cluster.services", func(c *Config) *[]netip.Prefix { return &c.Cluster.Services }, network),
	one("cluster.dns.address", func(c *Config) *netip.Addr { return &c.Cluster.DNS.Address }, address),
	one("cluster.dns.domain", func(c *Config) *string { return &c.Cluster.DNS.Domain }, domain),

	needsRestart(one("wireguard.interface", func(c *Config) *string { return &c.WireGuard.Interface }, link)),
	needsRestart(one("wireguard.listen-port", func(c *Config) *int { return &c.WireGuard.ListenPort }, number(1, 65535))),
	one("wireguard.mtu", func(c *Config) *int { return &c.WireGuard.MTU }, mtu),
	needsRestart(one("wireguard.implementation", func(c *Config) *string { return &c.WireGuard.Implementation },
		choice("auto", "kernel", "userspace"))),

	needsRestart(one("gossip.bind", func(c *Config) *netip.AddrPort { return &c.Gossip.Bind }, bind("7946"))),
	one("gossip.advertise", func(c *Config) *HostPort { return &c.Gossip.Advertise }, advertise),

	one("relay.max-rate", func(c *Config) *int { return &c.Relay.MaxRate }, rate),
	needsRestart(one("relay.listen", func(c *Config) *netip.AddrPort { return &c.Relay.Listen }, optional(bind("443")))),

	one("probe.interval", func(c *Config) *time.Duration { return &c.Probe.Interval }, duration(50*time.Millisecond, 10*time.Second, "250ms")),
	one("probe.misses", func(c *Config) *int { return &c.Probe.Misses }, number(2, 100)),

	needsRestart(one("cni.enabled", func(c *Config) *bool { return &c.CNI.Enabled }, boolean)),
	needsRestart(one("cni.conf-dir", func(c *Config) *string { return &c.CNI.ConfDir }, directory)),
	needsRestart(one("cni.bin-dir", func(c *Config) *string { return &c.CNI.BinDir }, directory)),
	needsRestart(one("cni.plugin-source", func(c *Config) *string { return &c.CNI.PluginSource }, directory)),
	needsRestart(one("cni.bridge", func(c *Config) *string { return &c.CNI.Bridge }, link)),

	one("k3s.write-config", func(c *Config) *bool { return &c.K3s.WriteConfig }, boolean),
	one("k3s.role", func(c *Config) *string { return &c.K3s.Role }, choice(RoleAuto, RoleServer, RoleAgent)),
	one("k3s.etcd", func(c *Config) *mesh.EtcdTimings { return &c.K3s.Etcd }, choice(mesh.EtcdLAN, mesh.EtcdWAN)),

	one("metrics.listen", func(c *Config) *netip.AddrPort { return &c.Metrics.Listen }, listen),
}

// lookup finds a key by its path.
func lookup(path string) (key, bool) {
	for _, k := range keys {
		if k.path == path {
			return k, true
		}
	}
	return key{}, false
}

// children returns the names that are valid in a section, in the order of the table.
func children(section string) []string {
	if section != "" {
		section += "."
	}
	var names []string
	for _, k := range keys {
		rest, below := strings.CutPrefix(k.path, section)
		if !below {
			continue
		}
		child, _, _ := strings.Cut(rest, ".")
		if len(names) == 0 || names[len(names)-1] != child {
			names = append(names, child)
		}
	}
	return names
}

// suggest returns advice for an unknown name in a section: a key of the section with a
// similar name, else one with that name in another section, else all names of the section.
func suggest(section, name string) string {
	known := children(section)
	nearest, best := "", 1+min(len(name), maxQuoted)/3
	for _, child := range known {
		if n := Distance(name, child); n <= best && (nearest == "" || n < best) {
			nearest, best = child, n
		}
	}
	if nearest != "" {
		return "did you mean " + pathOf(section, nearest) + "?"
	}
	for _, k := range keys {
		i := strings.LastIndexByte(k.path, '.')
		if i < 0 {
			continue
		}
		if parent, last := k.path[:i], k.path[i+1:]; last == name || k.path == name {
			return "did you mean " + last + " in the section " + parent + "?"
		}
	}
	return "known here: " + strings.Join(known, ", ")
}

// pathOf returns the path of a key in a section.
func pathOf(section, name string) string {
	if section == "" {
		return name
	}
	return section + "." + name
}

// Distance returns the Levenshtein distance of two strings. Of a, which a person wrote,
// it uses only maxQuoted bytes.
func Distance(a, b string) int {
	a = a[:min(len(a), maxQuoted)]
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			diagonal, row[j+1] = row[j+1], min(diagonal+cost, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}
