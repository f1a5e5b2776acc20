// SPDX-License-Identifier: Apache-2.0

package check

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/meshd/meshd/internal/config"
	"github.com/meshd/meshd/internal/k3s"
)

// k3s judges what k3s has been told, and gives the line to write. Where nothing says
// that k3s will run, nothing is said.
func (f Facts) k3s(cfg config.Config) []Finding {
	s := f.K3s
	if s.Role == k3s.Unknown && len(s.Values) == 0 && !cfg.K3s.WriteConfig {
		return nil
	}
	role := cmpRole(cfg.K3s.Role, s.Role)
	if cfg.K3s.WriteConfig && len(f.Overlay) > 0 {
		s = s.With(k3s.Wanted{Role: role, Overlay: f.Overlay, Cluster: cfg.Cluster})
	}
	j := k3sJudge{settings: s, writes: cfg.K3s.WriteConfig}
	if role == k3s.Unknown && cfg.K3s.WriteConfig {
		j.add(Warning, "k3s is not installed yet, and k3s.role is auto: only node-ip is written for it", "set k3s.role to server or agent before you install k3s")
	}
	j.nodeIP(cfg, f.Overlay)
	if role == k3s.Server || role == k3s.Unknown && s.Values["flannel-backend"].Text != "" {
		j.server(cfg)
	}
	if j.out == nil {
		return ok(what3s, "what it is told fits the mesh")
	}
	return j.out
}

const what3s = "k3s"

// cmpRole is the role that was configured, or else the one that was found.
func cmpRole(configured string, found k3s.Role) k3s.Role {
	if configured != config.RoleAuto {
		return k3s.Role(configured)
	}
	return found
}

// k3sJudge collects findings.
type k3sJudge struct {
	settings k3s.Settings
	writes   bool
	out      []Finding
}

func (j *k3sJudge) add(level Level, text, advice string) {
	j.out = append(j.out, Finding{level, what3s, text, advice})
}

// write words what to do about a setting.
func (j *k3sJudge) write(key, value string) string {
	v, told := j.settings.Values[key]
	switch {
	case told && strings.HasSuffix(v.From, ".service"):
		return fmt.Sprintf("write --%s=%s into %s", key, value, v.From)
	case told && v.From != k3s.DropIn:
		return fmt.Sprintf("write into %s: %s: %s", v.From, key, value)
	case j.writes:
		return "start meshd, which writes it; or write " + key + ": " + value
	}
	return fmt.Sprintf("write into %s: %s: %s; or set k3s.write-config to true", k3s.DropIn, key, value)
}

// nodeIP is for servers and agents.
func (j *k3sJudge) nodeIP(cfg config.Config, overlay []netip.Addr) {
	example := "ADDRESS, this node's overlay address as meshd status shows it"
	if len(overlay) > 0 {
		example = list(overlay)
	}
	v := j.settings.Values["node-ip"]
	switch {
	case v.Text == "":
		j.add(Warning, "node-ip is not set: k3s will use an address of this host that other nodes may not reach", j.write("node-ip", example))
	case len(overlay) > 0 && v.Text != list(overlay), len(overlay) == 0 && !allWithin(v.Text, cfg.Cluster.Overlay):
		j.add(Error, fmt.Sprintf("node-ip is %s, which is not this node's overlay address", v.Text), j.write("node-ip", example))
	}
}

// defaults are k3s's own.
var defaults3s = map[string]string{
	"flannel-backend": "vxlan",
	"cluster-cidr":    "10.42.0.0/16",
	"service-cidr":    "10.43.0.0/16",
}

// server is for what servers alone are told.
func (j *k3sJudge) server(cfg config.Config) {
	for _, want := range []struct{ key, value, why string }{
		{"flannel-backend", "none", "meshd is the pods' network"},
		{"cluster-cidr", list(cfg.Cluster.Pods), "cluster.pods"},
		{"service-cidr", list(cfg.Cluster.Services), "cluster.services"},
	} {
		got := j.settings.Values[want.key].Text
		if got == "" {
			got = defaults3s[want.key]
		}
		if !sameList(got, want.value) {
			j.add(Error, fmt.Sprintf("%s is %s, and has to be %s (%s)", want.key, got, want.value, want.why), j.write(want.key, want.value))
		}
	}
	advertise := j.settings.Values["advertise-address"]
	switch {
	case advertise.Text != "" && !allWithin(advertise.Text, cfg.Cluster.Overlay):
		j.add(Warning, fmt.Sprintf("advertise-address is %s, which is not in the mesh: agents will talk to this server outside of it", advertise.Text), j.write("advertise-address", "the node's overlay address"))
	case advertise.Text == "" && j.settings.Values["node-external-ip"].Text != "":
		j.add(Error, "node-external-ip is set without advertise-address, and pulls the agents out of the mesh", j.write("advertise-address", "the node's overlay address"))
	}
}

func list[T fmt.Stringer](all []T) string {
	words := make([]string, len(all))
	for i, v := range all {
		words[i] = v.String()
	}
	return strings.Join(words, ",")
}

// sameList compares lists with commas, whatever their order.
func sameList(a, b string) bool {
	split := func(s string) []string {
		words := strings.Split(strings.ReplaceAll(s, " ", ""), ",")
		slices.Sort(words)
		return words
	}
	return slices.Equal(split(a), split(b))
}

// allWithin says whether each address of a list with commas lies in one of the ranges.
func allWithin(text string, ranges []netip.Prefix) bool {
	for word := range strings.SplitSeq(text, ",") {
		a, err := netip.ParseAddr(strings.TrimSpace(word))
		if err != nil || !slices.ContainsFunc(ranges, func(p netip.Prefix) bool { return p.Contains(a) }) {
			return false
		}
	}
	return true
}
