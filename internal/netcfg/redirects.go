// SPDX-License-Identifier: Apache-2.0

package netcfg

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/meshd/meshd/internal/mesh"
	"github.com/meshd/meshd/internal/netcfg/filter"
)

// PortRedirect is a rule of another program that would redirect packets to one of our ports,
// such as that of a hostPort. The rule has no effect, because our table decides first,
// see protectOwnPorts. But whoever made it waits for packets that never arrive.
type PortRedirect struct {
	Table    filter.Table
	Redirect filter.Redirect
	Port     OwnPort
}

// PortRedirects returns such rules, at most one per table and port.
func PortRedirects(tables []filter.Table, ports []OwnPort) []PortRedirect {
	var out []PortRedirect
	for _, t := range tables {
		for _, p := range ports {
			if r, ok := findRedirect(t, p); ok {
				out = append(out, PortRedirect{Table: t, Redirect: r, Port: p})
			}
		}
	}
	return out
}

func findRedirect(t filter.Table, p OwnPort) (filter.Redirect, bool) {
	for _, name := range slices.Sorted(maps.Keys(t.Chains)) {
		hook := t.Chains[name].Hook
		if hook != "prerouting" && hook != "output" {
			continue
		}
		for _, packet := range p.Packets {
			if t.Family != "inet" && (t.Family == "ip6") != packet.Destination.Is6() {
				continue
			}
			if hook == "output" {
				packet.In = ""
			}
			if r, ok := t.Redirected(name, packet); ok {
				return r, true
			}
		}
	}
	return filter.Redirect{}, false
}

// Text describes what the rule would do.
func (t PortRedirect) Text() string {
	text := fmt.Sprintf("%s port %d is meshd's", strings.ToUpper(t.Port.Protocol), t.Port.Port)
	if t.Port.Setting != "" {
		text += fmt.Sprintf(" (%s)", t.Port.Setting)
	}
	text += fmt.Sprintf(", but the chain %s of %s redirects it", t.Redirect.Chain, BlockingChain{Table: t.Table}.owner())
	if t.Redirect.To != "" {
		text += " to " + t.Redirect.To
	}
	if t.Redirect.Comment != "" {
		text += fmt.Sprintf(" (its comment: %s)", t.Redirect.Comment)
	}
	return text + "; that rule has no effect, because meshd keeps its port"
}

// Advice tells a person what to do about the rule.
func (t PortRedirect) Advice() string {
	whose := "find the pod that has this hostPort, or the Service with this port and an external IP or a load balancer"
	if host, _, ok := strings.Cut(t.Redirect.To, ":"); ok && host != "" && !strings.Contains(t.Redirect.To, "[") {
		whose = fmt.Sprintf("find the pod or the Service (kubectl get pods -A -o wide | grep -w %s)", host)
	}
	advice := whose + " and give it another port"
	if t.Port.Setting != "" {
		advice += fmt.Sprintf("; or set %s to another port in this host's /etc/meshd.yaml", t.Port.Setting)
	}
	return advice
}

// ProblemPort is the kind of problem for a rule that would redirect one of our ports.
const ProblemPort mesh.ProblemKind = "port-asked-for"

func portProblems(observed, desired State) []mesh.Problem {
	var out []mesh.Problem
	for _, t := range PortRedirects(observed.Filters, desired.OwnPorts) {
		out = append(out, mesh.Problem{Kind: ProblemPort, Text: t.Text(), Advice: t.Advice()})
	}
	return out
}
