// SPDX-License-Identifier: Apache-2.0

package filter

import (
	"cmp"
	"strings"
)

// String returns the rule in a syntax close to nft's, without its comment. Conditions that
// are not understood become "...".
func (r Rule) String() string {
	var words []string
	for _, c := range r.Conditions {
		words = append(words, c.String())
	}
	if r.Action != None {
		words = append(words, string(r.Action))
	}
	if to := cmp.Or(r.Chain, r.To); to != "" {
		words = append(words, to)
	}
	return strings.Join(words, " ")
}

// keyword returns nft's name of a field.
func (f Field) keyword() string {
	switch f {
	case In:
		return "iifname"
	case Out:
		return "oifname"
	case Family:
		return "meta nfproto"
	case Protocol:
		return "meta l4proto"
	case Port:
		return "th dport"
	case SourcePort:
		return "th sport"
	case Source:
		return "saddr"
	case Destination:
		return "daddr"
	case Type:
		return "fib daddr type"
	case State:
		return "ct state"
	case Mark:
		return "meta mark"
	}
	return string(f)
}

// String returns the condition in a syntax close to nft's.
func (c Condition) String() string {
	if c.Field == Unknown {
		return "..."
	}
	words := []string{c.Field.keyword()}
	if c.Not {
		words = append(words, "!=")
	}
	const shown = 3
	switch n := len(c.Values); {
	case n == 1:
		words = append(words, c.Values[0])
	case n > shown:
		words = append(words, "{", strings.Join(c.Values[:shown], ", ")+", ...", "}")
	default:
		words = append(words, "{", strings.Join(c.Values, ", "), "}")
	}
	return strings.Join(words, " ")
}
