// SPDX-License-Identifier: Apache-2.0

package check

import (
	"cmp"
	"fmt"
	"net/netip"
	"net/url"
	"path/filepath"
	"slices"
	"strings"

	"github.com/meshd/meshd/internal/config"
	"github.com/meshd/meshd/internal/k3s"
)

// k3s reports settings of k3s that don't fit the mesh, with the line to write. On a host
// without any sign of k3s it reports nothing.
func (f Facts) k3s(cfg config.Config) []Finding {
	s := f.K3s
	if s.Role == k3s.Unknown && len(s.Values) == 0 && !cfg.K3s.WriteConfig {
		return nil
	}
	role := cmpRole(cfg.K3s.Role, s.Role)
	if cfg.K3s.WriteConfig {
		s = s.With(k3s.Wanted{Role: role, Overlay: f.Overlay, Zone: cfg.Node.Location, Etcd: cfg.K3s.Etcd, Cluster: cfg.Cluster})
	}
	c := k3sChecks{settings: s, writes: cfg.K3s.WriteConfig}
	if role == k3s.Unknown && cfg.K3s.WriteConfig {
		c.add(Warning, "k3s is not installed yet, and k3s.role is auto: what only servers need is not written for it", "set k3s.role to server or agent before you install k3s")
	}
	c.nodeIP(cfg, f.Overlay)
	c.names(cfg)
	c.listening(cfg)
	c.nodePorts(f.Overlay)
	c.joined(cfg)
	if role == k3s.Server || role == k3s.Unknown && f.K3s.Values["flannel-backend"].Text != "" {
		c.server(cfg)
		c.etcd(cfg, f.Members)
		c.certificate(f.K3sCert, f.Overlay)
	}
	if c.out == nil {
		return ok(what3s, "its settings fit the mesh")
	}
	return c.out
}

const what3s = "k3s"

// cmpRole returns the configured role, or the one that was found if the former is auto.
func cmpRole(configured string, found k3s.Role) k3s.Role {
	if configured != config.RoleAuto {
		return k3s.Role(configured)
	}
	return found
}

// k3sChecks collects the findings about k3s.
type k3sChecks struct {
	settings k3s.Settings
	writes   bool // meshd writes the drop-in
	out      []Finding
}

func (c *k3sChecks) add(level Level, text, advice string) {
	c.out = append(c.out, Finding{level, what3s, text, advice})
}

// write returns the advice for setting a key to a value.
func (c *k3sChecks) write(key, value string) string {
	v := c.settings.Values[key]
	switch {
	case strings.HasSuffix(v.From, ".service"):
		return fmt.Sprintf("write --%s=%s into %s", key, value, v.From)
	case v.From != "" && v.From != k3s.DropIn:
		return fmt.Sprintf("write into %s: %s: %s", v.From, key, value)
	case c.writes:
		return "start meshd, which writes it; or write " + key + ": " + value
	}
	// Not into k3s.DropIn: meshd leaves a file alone that it has not written, so it could not write its own later.
	return fmt.Sprintf("write into %s/meshd.yaml: %s: %s; or set k3s.write-config to true", filepath.Dir(k3s.DropIn), key, value)
}

// nodeIP checks the setting node-ip, which servers and agents have.
func (c *k3sChecks) nodeIP(cfg config.Config, overlay []netip.Addr) {
	example := "ADDRESS, this node's overlay address as meshd status shows it"
	if len(overlay) > 0 {
		example = list(overlay)
	}
	v := c.settings.Values["node-ip"]
	switch {
	case v.Text == "" && c.writes:
		// meshd writes it when it knows the address.
	case v.Text == "":
		c.add(Warning, "node-ip is not set: k3s will use an address of this host that other nodes may not reach", c.write("node-ip", example))
	case len(overlay) > 0 && v.Text != list(overlay), len(overlay) == 0 && !allWithin(v.Text, cfg.Cluster.Overlay):
		c.add(Error, fmt.Sprintf("node-ip is %s, which is not this node's overlay address", v.Text), c.write("node-ip", example))
	}
}

// names checks what the node is called.
func (c *k3sChecks) names(cfg config.Config) {
	if v := c.settings.Values["node-name"]; v.Text != "" && v.Text != cfg.Node.Name {
		c.add(Warning, fmt.Sprintf("node-name is %s, and node.name is %s: meshd and kubectl call this host by different names", v.Text, cfg.Node.Name), c.write("node-name", cfg.Node.Name))
	}
}

// listening checks what is open on the host's addresses outside of the mesh, and Services.
func (c *k3sChecks) listening(cfg config.Config) {
	if v := c.settings.Values["bind-address"]; v.Text != "" && !allWithin(v.Text, cfg.Cluster.Overlay) {
		c.add(Warning, fmt.Sprintf("bind-address is %s, which is not in the mesh: k3s's ports are open to whoever reaches this host there", v.Text), c.write("bind-address", "the node's overlay address"))
	}
	if v := c.settings.Values["disable-kube-proxy"]; v.Text == "true" || v.Text == "" && v.From != "" {
		c.add(Warning, fmt.Sprintf("disable-kube-proxy is set in %s: Services work only if something else forwards to their pods", v.From), "remove it, unless you run such a program")
	}
}

// nodePorts checks that nobody replaces the list to which meshd adds what closes NodePorts outside of
// the mesh.
func (c *k3sChecks) nodePorts(overlay []netip.Addr) {
	v := c.settings.Values["kube-proxy-arg"]
	if !c.writes || len(overlay) == 0 || strings.Contains(v.Text, "nodeport-addresses=") {
		return
	}
	advice := "write kube-proxy-arg+ there, with a + at the end"
	if strings.HasSuffix(v.From, ".service") {
		advice = "write --kube-proxy-arg=nodeport-addresses=primary there, too"
	}
	c.add(Warning, fmt.Sprintf("kube-proxy-arg in %s replaces what meshd writes: NodePorts are open to whoever reaches this host", v.From), advice)
}

// joined checks where agents, and servers other than the first, find the cluster.
func (c *k3sChecks) joined(cfg config.Config) {
	v := c.settings.Values["server"]
	u, err := url.Parse(v.Text)
	if err != nil {
		return // k3s says so
	}
	if _, err := netip.ParseAddr(u.Hostname()); err == nil && !allWithin(u.Hostname(), cfg.Cluster.Overlay) {
		c.add(Warning, fmt.Sprintf("server is %s in %s, which is not in the mesh: that port has to be open, and k3s needs it to start here", v.Text, v.From),
			"write https://ADDRESS:"+cmp.Or(u.Port(), "6443")+" there, with the server's overlay address")
	}
}

// certificate checks that a server which is to listen at this node's overlay address has a certificate
// for it.
func (c *k3sChecks) certificate(cert k3s.Certificate, overlay []netip.Addr) {
	if cert.Path == "" || len(overlay) == 0 || c.settings.Values["bind-address"].Text != overlay[0].String() || slices.Contains(cert.Addresses, overlay[0]) {
		return
	}
	c.add(Error, fmt.Sprintf("k3s keeps a certificate in %s that is not for %v, where it is to listen: it will not start", cert.Path, overlay[0]),
		fmt.Sprintf("stop k3s, remove the file, and start k3s, which makes another one; restart it once more when kubectl get nodes -o wide shows %v, for NodePorts are closed there until then", overlay[0]))
}

// defaults3s are the values that k3s uses for settings that are not set.
var defaults3s = map[string]string{
	"flannel-backend": "vxlan",
	"cluster-cidr":    "10.42.0.0/16",
	"service-cidr":    "10.43.0.0/16",
	"cluster-domain":  "cluster.local",
}

// server checks the settings that only servers have.
func (c *k3sChecks) server(cfg config.Config) {
	for _, want := range []struct{ key, value, why string }{
		{"flannel-backend", "none", "meshd is the pods' network"},
		{"cluster-cidr", list(cfg.Cluster.Pods), "cluster.pods"},
		{"service-cidr", list(cfg.Cluster.Services), "cluster.services"},
	} {
		got := cmp.Or(c.settings.Values[want.key].Text, defaults3s[want.key])
		if !sameList(got, want.value) {
			c.add(Error, fmt.Sprintf("%s is %s, but must be %s (%s)", want.key, got, want.value, want.why), c.write(want.key, want.value))
		}
	}
	for _, dns := range []struct{ key, value, ours string }{
		{"cluster-dns", dnsAddress(cfg), "cluster.dns.address"},
		{"cluster-domain", cfg.Cluster.DNS.Domain, "cluster.dns.domain"},
	} {
		got := cmp.Or(c.settings.Values[dns.key].Text, defaults3s[dns.key])
		if got != "" && dns.value != "" && !slices.Contains(strings.Split(got, ","), dns.value) {
			c.add(Warning, fmt.Sprintf("%s is %s, and %s is %s: laptops with meshd connect look up Services in vain", dns.key, got, dns.ours, dns.value), c.write(dns.key, dns.value))
		}
	}
	advertise := c.settings.Values["advertise-address"]
	switch {
	case advertise.Text != "" && !allWithin(advertise.Text, cfg.Cluster.Overlay):
		c.add(Warning, fmt.Sprintf("advertise-address is %s, which is not in the mesh: agents will talk to this server outside of it", advertise.Text), c.write("advertise-address", "the node's overlay address"))
	case advertise.Text == "" && c.settings.Values["node-external-ip"].Text != "":
		c.add(Error, "node-external-ip is set without advertise-address, and pulls the agents out of the mesh", c.write("advertise-address", "the node's overlay address"))
	}
}

// dnsAddress returns the cluster's resolver; "" if none is configured.
func dnsAddress(cfg config.Config) string {
	if a := cfg.Cluster.DNS.Address; a.IsValid() {
		return a.String()
	}
	return ""
}

func list[T fmt.Stringer](all []T) string {
	texts := make([]string, len(all))
	for i, v := range all {
		texts[i] = v.String()
	}
	return strings.Join(texts, ",")
}

// sameList reports whether two lists with commas are the same in any order.
func sameList(a, b string) bool {
	split := func(s string) []string {
		items := strings.Split(strings.ReplaceAll(s, " ", ""), ",")
		slices.Sort(items)
		return items
	}
	return slices.Equal(split(a), split(b))
}

// allWithin reports whether each address of a list with commas lies in one of the ranges.
func allWithin(text string, ranges []netip.Prefix) bool {
	for item := range strings.SplitSeq(text, ",") {
		a, err := netip.ParseAddr(strings.TrimSpace(item))
		if err != nil || !slices.ContainsFunc(ranges, func(p netip.Prefix) bool { return p.Contains(a) }) {
			return false
		}
	}
	return true
}
