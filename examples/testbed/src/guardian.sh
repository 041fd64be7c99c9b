# Ends what a test started, however the test ended.
#
# Reads records from standard input, whose other end only the test holds:
#   process PID START   a process and its start time (field 22 of /proc/PID/stat)
#   postgres DIRECTORY  a data directory; whichever postmaster owns it at the end belongs to us. Patroni's postmasters
#                       are nobody's children and change with every failover, so they cannot be recorded by id.
# At end of file: TERM to all (QUIT to a postmaster, which then leaves no shared memory behind), KILL to what is left
# after 2 s, all descendants included. Then the directory $1 is removed, unless $2 is "keep". What a busy disk has not
# removed $3 seconds after the end of file is left, under a name by which the next start knows that it is nobody's.
#
# Uses the shell and coreutils alone, because it must also work where nothing has been brought yet.
trap '' HUP INT QUIT TERM PIPE
directory=$1
keep=$2
limit=$3
processes=''
clusters=''

# Sets parent, group and start of process $1; fails if it is gone or a zombie.
look() {
    { read -r line <"/proc/$1/stat"; } 2>/dev/null || return 1
    set -- ${line##*) }
    case $1 in Z | X) return 1 ;; esac
    parent=$2
    group=$3
    shift 19
    start=$1
}

# Sets postmaster to "PID START" of the one that owns data directory $1.
owner() {
    { read -r pid <"$1/postmaster.pid"; } 2>/dev/null || return 1
    [ "$(readlink "/proc/$pid/cwd" 2>/dev/null)" = "$1" ] || return 1
    look "$pid" || return 1
    postmaster="$pid $start"
}

# Adds to family every descendant of its members.
grow() {
    while :; do
        before=$family
        for entry in /proc/[0-9]*; do
            pid=${entry#/proc/}
            case $family in *" $pid:"*) continue ;; esac
            look "$pid" || continue
            case $family in *" $parent:"* | *" $group:"*) family="$family$pid:$start " ;; esac
        done
        [ "$before" = "$family" ] && return
    done
}

# Sends signal $1 to the members of family that still are who they were.
send() {
    for member in $family; do
        pid=${member%:*}
        if look "$pid" && [ "$start" = "${member#*:}" ]; then
            kill -s "$1" "$pid" 2>/dev/null
            alive=yes
        fi
    done
}

while read -r kind what when; do
    case $kind in
    process) processes="$processes $what:$when" ;;
    postgres) clusters="$clusters $what" ;;
    esac
done
read -r begun _ </proc/uptime

family=' '
for member in $processes; do
    # One that has ended may have left others in its group, of which it stays a name; one with another start time is a
    # stranger who was given the number.
    if look "${member%:*}" && [ "$start" != "${member#*:}" ]; then continue; fi
    family="$family$member "
done
quit=''
for cluster in $clusters; do
    if owner "$cluster"; then
        set -- $postmaster
        family="$family$1:$2 "
        quit="$quit $1"
    fi
done
grow
for pid in $quit; do kill -s QUIT "$pid" 2>/dev/null; done
for member in $family; do
    pid=${member%:*}
    # A backend is left to its postmaster, which would take its sudden end for a crash.
    if look "$pid" && [ "$start" = "${member#*:}" ]; then
        case " $quit " in *" $pid "* | *" $parent "*) ;; *) kill -s TERM "$pid" 2>/dev/null ;; esac
    fi
done
send CONT
rounds=0
while [ $rounds -lt 10 ]; do
    alive=no
    send 0
    [ $alive = no ] && break
    sleep 0.2
    rounds=$((rounds + 1))
done
for cluster in $clusters; do
    owner "$cluster" && set -- $postmaster && family="$family$1:$2 "
done
grow
send KILL

# A postmaster that was killed leaves a System V segment behind, which names its creator.
for cluster in $clusters; do
    { read -r creator <"$cluster/postmaster.pid"; } 2>/dev/null || continue
    while read -r _ segment _ _ made _ users _; do
        [ "$made" = "$creator" ] && [ "$users" = 0 ] && ipcrm -m "$segment" 2>/dev/null
    done </proc/sysvipc/shm
done
[ "$keep" = keep ] && exit
gone=${directory%/*}/modax-gone-${directory##*/modax-ground-}
mv -- "$directory" "$gone" 2>/dev/null || gone=$directory
read -r now _ </proc/uptime
left=$((limit - ${now%.*} + ${begun%.*}))
[ $left -ge 1 ] || left=1
timeout -s KILL $left rm -rf -- "$gone"
