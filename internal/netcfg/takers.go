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

// Taker is a rule of others that would lead what comes to one of our ports elsewhere,
// such as a hostPort's. It has no effect, because our table decides before, see
// protectOwnPorts: whoever made it waits for packets that never come.
type Taker struct {
	Table    filter.Table
	Redirect filter.Redirect
	Port     OwnPort
}

// Takers returns such rules, at most one a table and port.
func Takers(tables []filter.Table, ports []OwnPort) []Taker {
	var out []Taker
	for _, t := range tables {
		for _, p := range ports {
			if r, ok := takes(t, p); ok {
				out = append(out, Taker{Table: t, Redirect: r, Port: p})
			}
		}
	}
	return out
}

func takes(t filter.Table, p OwnPort) (filter.Redirect, bool) {
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

// Text says what a taker does.
func (t Taker) Text() string {
	text := fmt.Sprintf("%s port %d is meshd's", strings.ToUpper(t.Port.Protocol), t.Port.Port)
	if t.Port.Setting != "" {
		text += fmt.Sprintf(" (%s)", t.Port.Setting)
	}
	text += fmt.Sprintf(", and the chain %s of %s asks for it", t.Redirect.Chain, Barrier{Table: t.Table}.owner())
	if t.Redirect.To != "" {
		text += ", to lead it to " + t.Redirect.To
	}
	if t.Redirect.Comment != "" {
		text += fmt.Sprintf(" (its comment: %s)", t.Redirect.Comment)
	}
	return text + "; nothing gets there, meshd keeps its port"
}

// Advice is what a person can do about it.
func (t Taker) Advice() string {
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

// ProblemPort says that somebody asks for a port of ours.
const ProblemPort mesh.ProblemKind = "port-asked-for"

func takerProblems(observed, desired State) []mesh.Problem {
	var out []mesh.Problem
	for _, t := range Takers(observed.Filters, desired.OwnPorts) {
		out = append(out, mesh.Problem{Kind: ProblemPort, Text: t.Text(), Advice: t.Advice()})
	}
	return out
}
